"""Cascades: trained networks one after the other, the cheap one first, as one network or as a run folder."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeVar, overload

from torch import Tensor, nn

from exitwise.data.transforms import Preprocessing
from exitwise.deploy.preprocessing import image_preprocessing
from exitwise.errors import UserError
from exitwise.kernels.inputs import Inputs, example_of
from exitwise.models.cascade import Cascade, View
from exitwise.models.staged import StagedModel
from exitwise.runs import build
from exitwise.runs.folder import Run, check_new, check_same_data, run_names
from exitwise.runs.records.cascade import CASCADE, Members
from exitwise.settings.schema import Settings

LARGEST = 8192
"""Side of an image that a network may see."""

T = TypeVar("T")
Size = int | tuple[int, int]
Exits = Literal["last", "all"]


@overload
def cascade(
    *networks: nn.Module,
    sizes: Sequence[Size] | None = None,
    preprocessing: Sequence[Any] | None = None,
    exits: Exits = "last",
    input_shape: tuple[int, ...] | None = None,
    example: Inputs | None = None,
) -> Cascade: ...
@overload
def cascade(
    *runs: str | PathLike[str], out: str | PathLike[str], sizes: Sequence[int] | None = None, exits: Exits = "last"
) -> Run: ...
def cascade(
    *networks: Any,
    out: str | PathLike[str] | None = None,
    sizes: Sequence[Size] | None = None,
    preprocessing: Sequence[Any] | None = None,
    exits: Exits = "last",
    input_shape: tuple[int, ...] | None = None,
    example: Inputs | None = None,
) -> Cascade | Run:
    """Put trained networks one after the other: what the first is sure of, the next never sees.

    The result is a network of stages whose state is the input: it calibrates, runs, exports and is timed like any
    other. It shares the networks' parameters. Shares of cost are of the last network alone, so that what reaches its
    exit costs more than 1.

    Of run folders it is a run folder, which holds copies of their weights and on which every command but ``train``
    works. Images are prepared as the run with the largest did it, and normalised as the first did.

    Args:
        networks: classifiers, cheap to dear, of the same classes in the same order: modules that return logits, or
            networks with exits. One network alone stands as often as there are ``sizes``. Or trained run folders, of
            the same images, split in the same way.
        out: of run folders, the folder to write: an empty one, or none.
        sizes: side in pixels, or height and width, of the images of each. By default those of a network with exits; of
            others ``input_shape``, or what ``preprocessing`` says; else the largest of the others', or 224.
        preprocessing: what was done to the images of each network, as
            :func:`~exitwise.deploy.preprocessing.image_preprocessing` takes it: its size, mean and standard deviation
            count. By default timm's configuration, where all networks have one.
        exits: of networks with exits: ``last``: each counts by its last exit; ``all``: all exits are exits of the
            cascade, under one rule.
        input_shape: (channels, height, width) of what the cascade is given, normalised as for the first network; by
            default as large as the largest of the sizes. Where a network sees another size, images are resized within
            its stage: bilinear, antialiased.
        example: for what are no images: example inputs of all networks, as in :func:`~exitwise.add_exits`.

    Raises:
        UserError: for runs of other data, if something is at ``out``, for fewer than two networks, for those of other
            classes or that do not take what they see, or where an earlier one costs more than a later one.
    """
    if exits not in ("last", "all"):
        raise UserError(f"expected exits as last or all; got {exits!r}")
    if not networks:
        raise UserError("expected at least two networks, or one with sizes; got none")
    if not all(isinstance(network, nn.Module) for network in networks) and out is not None:
        if any(each is not None for each in (preprocessing, input_shape, example)):
            raise UserError("runs know their preprocessing and inputs; got some with run folders")
        return _of_runs([Run(path) for path in networks], sizes, exits, Path(out))
    if out is not None:
        raise UserError(f"a folder is written of run folders; got {out} with networks")
    for network in networks:
        if not isinstance(network, nn.Module):
            raise UserError(f"expected networks, or run folders with out; got a {type(network).__name__}")
    networks = tuple(_one_per_size(networks, sizes))
    _check_labels(networks)
    prepared = _preprocessing(networks, preprocessing)
    inputs = _other_inputs(networks, example)
    if inputs is not None and (sizes is not None or preprocessing is not None):
        raise UserError("sizes and preprocessing are for images; got example inputs of another kind")
    if inputs is not None:
        return Cascade(networks, [View()] * len(networks), inputs, all_exits=exits == "all")
    usual = [_usual_size(network, each, input_shape) for network, each in zip(networks, prepared, strict=True)]
    known = [size for size in usual if size is not None]
    wanted = [_size(size) for size in sizes or [size or max(known, default=(224, 224)) for size in usual]]
    views = [
        View(size, each.mean, each.std) if each else View(size) for size, each in zip(wanted, prepared, strict=True)
    ]
    if input_shape is None:
        channels = next((n.input_shape[0] for n in networks if isinstance(n, StagedModel)), None)
        if channels is None:
            channels = prepared[0].channels if prepared[0] else 3
        input_shape = (channels, *map(max, zip(*wanted, strict=True)))
    return Cascade(networks, views, example_of(None, input_shape), all_exits=exits == "all")


def _one_per_size(networks: Sequence[T], sizes: Sequence[Size] | None) -> list[T]:
    """Return the networks, or one alone as often as there are sizes; checks that sizes are as many."""
    if sizes is not None and (isinstance(sizes, str) or not isinstance(sizes, Sequence)):
        raise UserError(f"expected sizes as a sequence, one per network; got {sizes!r}")
    given = list(networks) * (len(sizes) if len(networks) == 1 and sizes is not None else 1)
    if sizes is not None and len(sizes) != len(given):
        raise UserError(f"expected {len(given)} sizes, one per network; got {len(sizes)}")
    return given


def _of_runs(runs: Sequence[Run], sizes: Sequence[Size] | None, exits: Exits, out: Path) -> Run:
    runs = _one_per_size(runs, sizes)
    names = run_names(runs)
    for run, name in zip(runs, names, strict=True):
        if run.cascade is not None:
            raise UserError(f"expected runs of one network each; {name} is a cascade")
        if run.settings.tokens is not None:
            raise UserError(f"expected runs of images; {name} is of texts")
        if len(run.settings.mean) != len(runs[0].settings.mean):
            raise UserError(f"expected runs with images of as many channels; {names[0]} and {name} differ")
    check_same_data(runs, names)
    views = [
        View(_size(size), tuple(run.settings.mean), tuple(run.settings.std))
        for size, run in zip(sizes or [run.settings.input_shape[1:] for run in runs], runs, strict=True)
    ]
    different = {run.path.resolve(): run for run in runs}
    places = list(different)
    order = tuple(places.index(run.path.resolve()) for run in runs)
    members = Members(tuple(run.as_built() for run in different.values()), order, tuple(views), exits == "all")
    settings = _settings(runs, views)
    check_new(out, settings)
    splits = build.load_splits(settings)
    if splits.summary() != runs[0].data:
        raise UserError(f"expected the data that {names[0]} was trained on; the images have changed")
    networks = {place: run.model() for place, run in different.items()}
    model = Cascade(
        [networks[run.path.resolve()] for run in runs],
        views,
        example_of(None, settings.input_shape),
        all_exits=exits == "all",
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        made = Run.create(Path(temporary) / "made", settings, splits, sys.argv, "never")
        CASCADE.write(made.path, members)
        made.checkpoints.save("best", 0, {"model": model.state_dict()})
        check_new(out, settings)
        made.path.rename(out)
    return Run(out)


def _settings(runs: Sequence[Run], views: Sequence[View]) -> Settings:
    """Return settings of the data that a cascade is given: as the run with the largest images has them, of the largest
    size where images of any size can be had, normalised as for the first."""
    largest = max(range(len(runs)), key=lambda k: (runs[k].settings.image_size, k))
    settings, first = runs[largest].settings, runs[0].settings
    side = max(side for view in views for side in view.size or ())
    if not build.image_preprocessing_of(settings).any_size:
        side = settings.image_size
    return settings.model_copy(update={"image_size": side, "mean": first.mean, "std": first.std})


def _check_labels(networks: Sequence[nn.Module]) -> None:
    """Raise UserError where two networks name their classes (transformers' do, by number) and differ in a name."""
    found = [getattr(getattr(network, "config", None), "id2label", None) or {} for network in networks]
    for number, names in enumerate(found[1:], start=2):
        for label, name in names.items():
            if found[0].get(label, name) != name:
                raise UserError(
                    f"expected networks of the same classes in the same order; class {label} is {found[0][label]!r} of "
                    f"network 1, {name!r} of network {number}"
                )


def _preprocessing(networks: Sequence[nn.Module], given: Sequence[Any] | None) -> list[Preprocessing | None]:
    """Return the preprocessing of each network: as given or, where all have one, timm's configuration."""
    if given is None:
        configurations = [getattr(network, "pretrained_cfg", None) for network in networks]
        if not all(isinstance(each, Mapping) and {"mean", "std"} <= set(each) for each in configurations):
            return [None] * len(networks)
        given = configurations
    if isinstance(given, (Mapping, Preprocessing)) or len(given) != len(networks):
        count = len(given) if isinstance(given, (list, tuple)) else 1
        raise UserError(f"expected preprocessing of {len(networks)} networks, in their order; got {count}")
    return [image_preprocessing(each) for each in given]


def _other_inputs(networks: Sequence[nn.Module], example: Inputs | None) -> Inputs | None:
    """Return example inputs of networks that take no images; None of those that do."""
    if example is None:
        example = next((n.example for n in networks if isinstance(n, StagedModel)), None)
    if example is None or (isinstance(example, Tensor) and example.dim() == 4):
        return None
    return example_of(example, None)


def _usual_size(network: nn.Module, prepared: Preprocessing | None, input_shape: tuple[int, ...] | None) -> Any:
    """Return height and width of what a network usually sees; None where nothing says."""
    if isinstance(network, StagedModel):
        return network.input_shape[1:]
    if input_shape is not None:
        return input_shape[1:]
    return prepared and (prepared.image_size, prepared.image_size)


def _size(given: Any) -> tuple[int, int]:
    sides = tuple(given) if isinstance(given, Sequence) else (given, given)
    if len(sides) != 2 or not all(isinstance(side, int) and 0 < side <= LARGEST for side in sides):
        raise UserError(f"expected sizes as sides in pixels, from 1 to {LARGEST}; got {given!r}")
    return sides
