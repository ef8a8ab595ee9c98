"""Weights from elsewhere fitted to a network by name: prefixes of wrappers, other classes, a missing classifier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from exitwise.errors import UserError
from exitwise.models.heads import start_small
from exitwise.models.staged import StagedModel

_WRAPPERS = ("module", "_orig_mod")
"""What DataParallel and torch.compile put into the names of what they wrap."""

_COUNTS = ("n_averaged",)
"""What torch's AveragedModel adds."""


def load_weights(network: nn.Module, state: Mapping[str, Tensor], source: str, num_classes: int | None = None) -> None:
    """Load weights by name; a classifier for another number of classes than ``num_classes`` starts near zero.

    Names lose what wrappers put before them: ``module.`` and ``_orig_mod.`` anywhere, and any other prefix under which
    the network lies among other things, as in Lightning's files (``model.``, ``net.``); of several, an average
    (``ema_model.``). Counts that only BatchNorm's own average would read may be missing.

    Args:
        network: changed in place.
        state: names and tensors.
        source: where they come from, for the error.
        num_classes: of the network.

    Raises:
        UserError: if anything but the classifier does not fit; nothing is changed then.
    """
    expected = network.state_dict()
    unwrapped = {_unwrapped(name): value for name, value in state.items() if name not in _COUNTS or name in expected}
    wrapped = len(expected.keys() & unwrapped.keys()) >= len(expected.keys() & state.keys())
    state = _without_prefix(unwrapped if wrapped else state, expected)
    other = {name for name in expected if name in state and state[name].shape != expected[name].shape}
    classifier = all(_only_classes_differ(state[name], expected[name], num_classes) for name in other)
    missing = sorted(name for name in set(expected) - set(state) if not name.endswith("num_batches_tracked"))
    if _is_classifier(missing, expected, num_classes):
        other, missing = other | set(missing), []
    unknown = sorted(set(state) - set(expected))
    problem = (
        (missing and f"it lacks {_some(missing)}")
        or (unknown and f"it has the unknown {_some(unknown)}")
        or (other and not classifier and f"it has another shape for {min(other)}")
    )
    if problem:
        raise UserError(f"expected weights of {type(network).__name__} in {source}; {problem}")
    network.load_state_dict({**expected, **{name: value for name, value in state.items() if name not in other}})
    for name in other:
        start_small(network.get_parameter(name))


def load_exited(model: StagedModel, state: Mapping[str, Tensor], source: str) -> None:
    """Load the weights of another network with exits on the same backbone, by :meth:`torch.nn.Module.state_dict`.

    The exits may lie elsewhere, and the classes may be others: heads of exits at the same places are loaded, other
    heads and classifiers start anew.

    Raises:
        UserError: if the backbone's weights do not fit; nothing is changed then.
    """
    expected = model.state_dict()
    early, theirs_early = _early_heads(expected), _early_heads(state)
    given = {_in_backbone(name): value for name, value in state.items() if name not in theirs_early}
    same_places = {name for name in state if ".body." in name} == {name for name in expected if ".body." in name}
    found: dict[str, Tensor] = {}
    fresh: list[str] = []
    for name, value in expected.items():
        theirs = state.get(name if same_places else "") if name in early else given.get(_in_backbone(name))
        if theirs is not None and theirs.shape == value.shape:
            found[name] = theirs
        elif theirs is not None and _only_classes_differ(theirs, value, model.num_classes):
            fresh.append(name)
        elif name not in early:
            what = "it lacks it" if theirs is None else f"there it is {tuple(theirs.shape)}"
            raise UserError(f"expected {_in_backbone(name)} of {tuple(value.shape)} in {source}; {what}")
    model.load_state_dict({**expected, **found})
    for name in fresh:
        start_small(model.get_parameter(name))


def _early_heads(names: Iterable[str]) -> set[str]:
    """Return the names that belong to heads other than the last exit's, of the network with these names."""
    stages = {name: name.split(".")[1] for name in names if name.startswith("stages.")}
    last = max(map(int, stages.values()), default=0)
    return {name for name, stage in stages.items() if int(stage) < last and name.split(".")[2] == "head"}


def _in_backbone(name: str) -> str:
    return name.split(".", 3)[-1]


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _without_prefix(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return what lies under the prefix that fits most of the expected names; all, if that is none."""
    ends = {name.rpartition(".")[2] for name in expected}
    prefixes: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        if parts[-1] not in ends:
            continue
        prefixes.update(
            "".join(f"{part}." for part in parts[:depth])
            for depth in range(len(parts))
            if ".".join(parts[depth:]) in expected
        )
    best = max(prefixes, key=lambda prefix: (prefixes[prefix], "ema" in prefix, -len(prefix)), default="")
    if not best:
        return state
    return {name.removeprefix(best): value for name, value in state.items() if name.startswith(best)}


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _only_classes_differ(given: Tensor, expected: Tensor, num_classes: int | None) -> bool:
    same_rest = given.dim() == expected.dim() > 0 and given.shape[1:] == expected.shape[1:]
    return same_rest and expected.shape[0] == num_classes


def _is_classifier(names: Sequence[str], tensors: Mapping[str, Tensor], num_classes: int | None) -> bool:
    """Return whether these are one layer's, or two heads', with an output per class."""
    layers = {name.rpartition(".")[0] for name in names}
    return 1 <= len(layers) <= 2 and all(tensors[name].shape[:1] == (num_classes,) for name in names)
