"""From settings to the parts of a training: preprocessing, data, network, method, optimizer."""

from __future__ import annotations

import random
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from exitwise.catalogue.links import LINKS
from exitwise.data import Preprocessing, Splits, TrainingBatches, load
from exitwise.data.tokens import Tokens
from exitwise.deploy.preprocessing import preprocessing_for
from exitwise.deploy.texts import Texts
from exitwise.errors import UserError
from exitwise.kernels.inputs import example_of
from exitwise.methods import Method, build_method, create_flow, in_schedule
from exitwise.models import create_model
from exitwise.models.backbones.libraries import tokenizer_of
from exitwise.models.backbones.weights import load_exited
from exitwise.models.cascade import Cascade
from exitwise.models.links import link_heads
from exitwise.models.staged import Stage, StagedModel
from exitwise.processes.distributed import first
from exitwise.processes.ranks import ALONE, Ranks
from exitwise.runs.records.cascade import CASCADE, Members
from exitwise.settings.checks import is_of_signals, is_run_folder
from exitwise.settings.schema import Settings, is_backbone
from exitwise.training.checkpoint_folder import CheckpointFolder
from exitwise.training.compiled import compile_network


class Parts(NamedTuple):
    """The parts of a training on one device."""

    model: StagedModel
    method: Method
    optimizer: torch.optim.Optimizer
    batches: TrainingBatches


def build(settings: Settings, splits: Splits, device: torch.device, ranks: Ranks = ALONE) -> Parts:
    """Return the parts that the settings describe, as they are before the first step.

    In regime ``heads`` the batches are in order, to be kept (see :mod:`exitwise.workflows.frozen`).

    The generators of torch, Python and NumPy are set to the settings' seed. The first weights of the network and the
    method are drawn from torch's.

    Args:
        settings: what to train, and how.
        splits: the data that they name.
        device: where to train.
        ranks: the processes that train together; the first loads pretrained weights before the others do.
    """
    torch.manual_seed(settings.seed)
    random.seed(settings.seed)
    np.random.seed(settings.seed % 2**32)
    with first(ranks):
        model = build_model(settings, len(splits.classes), pretrained=True).to(device)
    if settings.tokens is not None:
        texts_of(settings, model)
    if settings.compile:
        compile_network(model)
    batches = TrainingBatches(
        splits.train,
        settings.batch_size,
        settings.seed,
        device,
        settings.workers,
        ranks.rank,
        ranks.size,
        in_order=settings.regime == "heads",
    )
    method: Method = build_method(settings.method, settings.options, model.exits, fused=device.type == "cuda")
    if settings.flow != "plain":
        model.flow = create_flow(settings.flow, **vars(settings.options_of("flow")))
    method = in_schedule(settings.regime, method, settings.options_of("regime"), batches.sampler.batches_per_epoch)
    return Parts(model, method.to(device), build_optimizer(settings, model), batches)


@lru_cache(maxsize=4)
def _texts(model: str, tokens: int) -> Texts:
    return Texts(tokenizer_of(model), tokens)


def texts_of(settings: Settings, model: StagedModel) -> Texts:
    """Return the way of texts to a run's network.

    Raises:
        UserError: if the network takes shorter texts, or knows fewer ids.
    """
    assert settings.tokens is not None
    texts = preprocessing_for(model, _texts(settings.model, settings.tokens))
    assert isinstance(texts, Texts)
    return texts


def preprocessing_of(settings: Settings) -> Preprocessing | Tokens:
    """Return what the settings say of images, or of texts."""
    if settings.tokens is not None:
        return Tokens(_texts(settings.model, settings.tokens).content)
    return image_preprocessing_of(settings)


def image_preprocessing_of(settings: Settings) -> Preprocessing:
    """Return what the settings say of images."""
    return Preprocessing(
        settings.image_size,
        tuple(settings.mean),
        tuple(settings.std),
        settings.augment,
        settings.interpolation,
        settings.crop,
        settings.smallest_crop,
        is_of_signals(settings.data),
        settings.policy,
        settings.erase,
    )


def load_splits(settings: Settings, *, max_broken: float = 1.0) -> Splits:
    """Return the data that the settings name; training limits the share of broken images, what comes after it does
    not."""
    return load(**_asked(settings), max_broken=max_broken)


def reads_alike(one: Settings, other: Settings) -> bool:
    """Return whether two settings name the same data, split and prepared in the same way."""
    return _asked(one) == _asked(other)


def _asked(settings: Settings) -> dict[str, Any]:
    return {
        "name_or_path": settings.data,
        "preprocessing": preprocessing_of(settings),
        "root": settings.data_root,
        "calibration_fraction": settings.calibration_fraction,
        "test_fraction": settings.test_fraction,
        "seed": settings.split_seed,
        "imbalance": settings.imbalance,
    }


def build_model(settings: Settings, classes: int, *, pretrained: bool = False) -> StagedModel:
    """Return the network that the settings name, for that many classes; with its pretrained weights, if asked for."""
    shape = {"input_shape": settings.input_shape} if settings.tokens is None else {"tokens": settings.tokens}
    options: dict[str, Any] = {"num_classes": classes, **shape}
    first_weights = settings.pretrained if pretrained else None
    other_run = first_weights is not None and is_run_folder(Path(first_weights))
    if is_backbone(settings.model):
        options |= {"exits": settings.exits, "at": settings.exits_at, "head": settings.head, "skip": settings.skip}
        options["place_by"] = settings.place_by
        if first_weights not in (None, "none") and not other_run:
            options["pretrained"] = first_weights == "hub" or first_weights
    model = create_model(settings.model, **options)
    if first_weights is not None and other_run:
        load_exited(model, _weights_of_run(Path(first_weights)), first_weights)
    if settings.handed_on != "nothing":
        make = LINKS[settings.handed_on].load()
        link_heads(model, partial(make, classes, **vars(settings.options_of("handed_on"))))
    if settings.regime == "heads":
        model.freeze_bodies()
    return model


def build_cascade(members: Members, classes: int, input_shape: tuple[int, ...]) -> Cascade:
    """Return the cascade of the networks that a record names, for that many classes, without their weights."""
    networks = [build_model(settings, classes) for settings in members.networks]
    example = example_of(None, input_shape)
    return Cascade([networks[k] for k in members.order], members.views, example, all_exits=members.all_exits)


def _weights_of_run(folder: Path) -> dict[str, Tensor]:
    """Return the weights of the best epoch of a run."""
    if CASCADE.exists(folder):
        raise UserError(f"expected a run of one network; {folder} is a cascade of several")
    found = CheckpointFolder(folder / "checkpoints").load("best")
    if found is None:
        raise UserError(f"expected a trained run at {folder}; it has no checkpoint yet")
    return found.tree["model"]


def pick_device(name: str) -> torch.device:
    """Return the device of that name; ``auto`` is the GPU if there is one.

    Raises:
        UserError: if there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"expected a device of this machine, such as cpu or cuda; {name!r} is not available") from error
    return device


def build_optimizer(settings: Settings, model: StagedModel) -> torch.optim.Optimizer:
    """Return the network's optimizer that the settings name, over what is to be trained."""
    groups = _parameter_groups(settings, model)
    fused = next(model.parameters()).is_cuda  # so that a step is skipped without waiting for the GPU
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay, fused=fused)
    return torch.optim.SGD(
        groups,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        fused=fused,
    )


def _parameter_groups(settings: Settings, model: StagedModel) -> list[dict[str, Any]]:
    """Return all parameters in one group; or those of the exits apart, where their learning rates differ; or by layers,
    and vectors apart, where the settings tell them apart."""
    trained = [param for param in model.parameters() if param.requires_grad]
    by_layer = settings.layer_decay < 1 or not settings.decay_vectors
    if settings.backbone_lr_factor == settings.head_lr_factor and not by_layer:
        return [{"params": trained, "lr": settings.lr * settings.head_lr_factor}]
    heads = {id(param) for stage in model.stages for param in cast("Stage", stage).head_parameters()}
    parts = (
        ([param for param in trained if id(param) not in heads], settings.backbone_lr_factor),
        ([param for param in trained if id(param) in heads], settings.head_lr_factor),
    )
    if by_layer:
        (below, factor), (above, head_factor) = parts
        groups = _layers(settings, below, above)
        return [
            {**group, "lr": settings.lr * (head_factor if id(group["params"][0]) in heads else factor)}
            for group in groups
        ]
    return [{"params": params, "lr": settings.lr * factor} for params, factor in parts if params]


def _layers(settings: Settings, below: list[nn.Parameter], above: list[nn.Parameter]) -> list[dict[str, Any]]:
    """Return timm's groups of the parameters below the exits, twelve tensors a layer, and of the exits."""
    together = nn.Module()
    together.below, together.above = nn.ParameterList(below), nn.ParameterList(above)
    together.pretrained_cfg = {"classifier": "above"}  # type: ignore[assignment]
    groups: list[dict[str, Any]] = param_groups_layer_decay(
        together,
        settings.weight_decay,
        weight_decay_exclude_1d=not settings.decay_vectors,
        layer_decay=settings.layer_decay,
    )
    return groups
