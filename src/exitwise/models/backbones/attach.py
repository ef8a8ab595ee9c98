"""Exits on any image classifier: where they can go, where they should, and the network cut into stages there.

Knows torch.fx graphs and feature shapes; neither where a backbone comes from nor how it will be trained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.split_module import split_module
from torch.utils.flop_counter import FlopCounterMode

from exitwise.errors import UserError, near_match
from exitwise.models.backbones.tracing import (
    DRY_RUN_BATCH,
    Traced,
    cannot_split,
    is_layer,
    logits_of,
    trace,
    unchanged,
    value_of,
)
from exitwise.models.heads import Feature, HeadFactory, suited_head
from exitwise.models.staged import Stage, StagedModel, State, evaluating


class ExitPoint(NamedTuple):
    """A place where an exit can go.

    Attributes:
        name: the submodule whose output the exit sees.
        share: share of the backbone's multiply-accumulates that are spent up to there, in [0, 1].
        feature: what is there.
    """

    name: str
    share: float
    feature: Feature


class ExitedModel(StagedModel):
    """A backbone with exits.

    Attributes:
        points: where the early exits are; the last exit is the backbone's own classifier.
        skips: whether running it stage by stage saves what lies behind an exit.
    """

    def __init__(
        self,
        stages: Iterable[Stage],
        num_classes: int,
        input_shape: tuple[int, int, int],
        points: Sequence[ExitPoint],
        skips: bool,
    ) -> None:
        super().__init__(stages, num_classes, input_shape)
        self.points = tuple(points)
        self.skips = skips


def add_exits(
    backbone: nn.Module,
    exits: int | None = None,
    *,
    at: Sequence[str] | None = None,
    num_classes: int | None = None,
    head: str | HeadFactory = "auto",
    input_shape: tuple[int, int, int] = (3, 224, 224),
    skip: bool = True,
) -> ExitedModel:
    """Put early exits on a classifier, which stays as it is and becomes the last exit.

    The result shares the backbone's parameters and buffers. In eval mode its last logits are the backbone's own,
    bit for bit; in train mode dropout, stochastic depth and BatchNorm work as in the backbone.

    Args:
        backbone: maps images (B, channels, height, width) to logits (B, C), or to an object with ``logits``.
        exits: number of exits K, the last one included; the others are put near equal shares of the backbone's
            multiply-accumulates. 4 if neither this nor ``at`` is given.
        at: names of submodules to put exits after, in order; the last exit is added to them.
        num_classes: number of classes C; only to be checked against the backbone's.
        head: ``auto``: suited to the feature (see :func:`~exitwise.models.heads.suited_head`); ``linear``: pooling and
            one linear layer; or a function of (:class:`~exitwise.models.heads.Feature`, C) that returns a module.
        input_shape: (channels, height, width) of the images that it is meant for.
        skip: cut the backbone into stages. If False, it is left whole: all exits are evaluated together, and
            nothing is saved at inference. For networks that cannot be cut.

    Raises:
        UserError: for a name that is no exit point (lists those that are), or more exits than there are places.
        CannotSplitError: if the network decides by what it computes; names the module.
    """
    if exits is not None and at is not None:
        raise UserError(f"expected exits or at, not both; got {exits} and {list(at)}")
    exits = 4 if exits is None else exits
    if next(backbone.parameters(), None) is None:
        raise UserError(f"expected a network with parameters; {type(backbone).__name__} has none")
    with evaluating(backbone), unchanged(backbone):
        classes = _count_classes(backbone, input_shape, num_classes)
        if skip:
            traced = trace(backbone, input_shape)
            places = _places(traced, backbone, input_shape[1:])
            points = _choose(places, exits, at, _whole_hint(traced))
            model = _staged(traced, places, points, classes, head, input_shape).to(next(backbone.parameters()).device)
            for samples in (3, 1):
                _check_same(backbone, model, samples)
        else:
            model = _together(backbone, exits, at, classes, head, input_shape)
    own = {id(module) for module in backbone.modules()}
    for module in model.modules():
        if id(module) not in own:
            module.training = backbone.training
    return model


def exit_points(backbone: nn.Module, input_shape: tuple[int, int, int] = (3, 224, 224)) -> list[ExitPoint]:
    """Where exits can go, cheap to dear; see :func:`add_exits`."""
    return [place.point for place in _places(trace(backbone, input_shape), backbone, input_shape[1:]).values()]


class _Place(NamedTuple):
    point: ExitPoint
    node: Any
    block: bool
    """Whether a submodule that ends here is one of a row of blocks."""


def _places(traced: Traced, backbone: nn.Module, size: tuple[int, int]) -> dict[str, _Place]:
    """Name to place, for all nodes that everything later depends on alone; where several submodules end at
    one, the outermost names it."""
    prefix, blocks = _prefix(backbone), _blocks(backbone)
    block_ends = {node for name, node in traced.outputs.items() if name in blocks}
    nodes = list(traced.module.graph.nodes)
    spent = dict(zip(nodes, accumulate(traced.macs.get(node, 0) for node in nodes), strict=True))
    alone = _alone(nodes)
    outermost: dict[fx.Node, str] = {}
    for name, node in traced.outputs.items():
        if name and node in alone and (node not in outermost or len(name) < len(outermost[node])):
            outermost[node] = name
    places = {}
    for node in nodes:
        if node not in outermost or not 0 < spent[node] < spent[nodes[-1]]:
            continue
        name, feature = outermost[node], Feature.of(value_of(node).shape, prefix, size)
        if feature is not None and not _is_overwritten(traced.module, node):
            point = ExitPoint(name, spent[node] / spent[nodes[-1]], feature)
            places[name] = _Place(point, node, node in block_ends)
    return places


def _is_overwritten(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether what comes next writes to a node's result in place, so that an exit could not be differentiated there."""
    for user in node.users:
        if user.op == "call_module" and getattr(module.get_submodule(str(user.target)), "inplace", False):
            return True
        if user.op == "call_method" and str(user.target).endswith("_") and not str(user.target).endswith("__"):
            return True
        if user.kwargs.get("inplace") is True or getattr(user.target, "__name__", "").startswith("__i"):
            return True
        if user.op == "call_function" and getattr(user.target, "__name__", "") in _IN_PLACE:
            return True
    return False


_IN_PLACE = frozenset({"iadd", "isub", "imul", "itruediv", "relu_", "add_", "mul_"})


def _blocks(backbone: nn.Module) -> set[str]:
    """Names of submodules that are built of others, layers aside, and have a sibling of their class."""
    names = set()
    for path, parent in backbone.named_modules():
        kinds = Counter(type(child) for child in parent.children())
        for name, child in parent.named_children():
            if kinds[type(child)] > 1 and any(child.children()) and not is_layer(child):
                names.add(f"{path}.{name}".removeprefix("."))
    return names


def _varying(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """The nodes that depend on the images."""
    varying: set[fx.Node] = set()
    for node in nodes:
        if node.op == "placeholder" or any(source in varying for source in node.all_input_nodes):
            varying.add(node)
    return varying


def _prefix(backbone: nn.Module) -> int | None:
    """How many tokens stand for no part of the image, where the backbone says so (timm's do)."""
    prefix = getattr(backbone, "num_prefix_tokens", None)
    return prefix if isinstance(prefix, int) else None


def _choose(places: dict[str, _Place], exits: int, at: Sequence[str] | None, hint: str) -> list[ExitPoint]:
    if at is not None:
        unknown = [name for name in at if name not in places]
        if unknown:
            raise UserError(
                f"no exit can go after {unknown[0]!r}; {near_match(unknown[0], places)} "
                f"(exits can go after {', '.join(places)})"
            )
        points = [places[name].point for name in at]
        if any(a.share > b.share for a, b in pairwise(points)) or len(set(at)) < len(at):
            raise UserError(f"expected exits in the order of the network, each once; got {', '.join(at)}")
        return points
    if exits < 2:
        raise UserError(f"expected at least 2 exits, the last one included; got {exits}")
    useful = [place for place in places.values() if CHEAPEST <= place.point.share <= DEAREST]
    blocks = [place.point for place in useful if place.block]
    candidates = blocks if len(blocks) >= exits - 1 else [place.point for place in useful]
    if len(candidates) < exits - 1:
        raise UserError(
            f"expected at most {len(candidates) + 1} exits, for that many places between {100 * CHEAPEST:.0f} and "
            f"{100 * DEAREST:.0f} % of the cost; got {exits}{hint} (skip=False evaluates all exits together, without "
            "skipping)"
        )
    return _nearest(candidates, [k / exits for k in range(1, exits)])


CHEAPEST, DEAREST = 0.04, 0.96
"""Shares of the cost between which exits are put where their places are not given."""


def _nearest(candidates: Sequence[ExitPoint], targets: Sequence[float]) -> list[ExitPoint]:
    """One candidate per target share, in order, each once: those of least total squared distance."""
    best: list[tuple[float, list[ExitPoint]]] = [(float("inf"), []) for _ in range(len(targets) + 1)]
    best[0] = (0.0, [])
    for point in candidates:
        for chosen in range(len(targets), 0, -1):
            cost, points = best[chosen - 1]
            cost += (point.share - targets[chosen - 1]) ** 2
            if cost < best[chosen][0]:
                best[chosen] = (cost, [*points, point])
    return best[-1][1]


def _whole_hint(traced: Traced) -> str:
    if not traced.whole:
        return ""
    return f"; module {', '.join(traced.whole)} decides by what it computes and stays whole"


def _staged(
    traced: Traced,
    places: dict[str, _Place],
    points: Sequence[ExitPoint],
    num_classes: int,
    head: str | HeadFactory,
    input_shape: tuple[int, int, int],
) -> ExitedModel:
    cuts = [places[point.name].node for point in points]
    classifier = _before_classifier(traced, cuts, num_classes)
    parts = _split(traced.module, cuts if classifier is None else [*cuts, classifier])
    stages = [
        Stage(body, suited_head(point.feature, num_classes, head)) for body, point in zip(parts, points, strict=False)
    ]
    rest = parts[len(points) :]
    stages.append(Stage(rest[0], rest[1] if len(rest) > 1 else nn.Identity()))
    return ExitedModel(stages, num_classes, input_shape, points, skips=True)


def _before_classifier(traced: Traced, cuts: Sequence[fx.Node], num_classes: int) -> fx.Node | None:
    """The last place before the layers that make class scores, if there is one behind the last exit."""
    nodes = list(traced.module.graph.nodes)
    scoring = [
        index
        for index, node in enumerate(nodes)
        if node.op == "call_module"
        and isinstance(value := value_of(node), Tensor)
        and tuple(value.shape[1:]) == (num_classes,)
        and any(True for _ in traced.module.get_submodule(str(node.target)).parameters())
    ]
    if not scoring:
        return None
    alone = _alone(nodes)
    after = max(nodes.index(cut) for cut in cuts)
    between = [node for node in nodes[after + 1 : scoring[0]] if node in alone]
    return between[-1] if between else None


def _alone(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """The nodes with a tensor that all later ones depend on, and on no other earlier one."""
    varying = _varying(nodes)
    position = {node: index for index, node in enumerate(nodes)}
    alone, reach = set(), -1
    for index, node in enumerate(nodes):
        if node in varying:
            last = max((position[user] for user in node.users), default=index)
            value = value_of(node)
            if reach <= index < last and isinstance(value, Tensor) and value.dim() and len(value) == DRY_RUN_BATCH:
                alone.add(node)
            reach = max(reach, last)
    return alone


def _split(module: fx.GraphModule, cuts: Sequence[fx.Node]) -> list[nn.Module]:
    """The parts of a network between cuts, each a function of the last one's result; they share its submodules."""
    graph = module.graph
    nodes = list(graph.nodes)
    varying = _varying(nodes)
    part: dict[fx.Node, int] = {}
    current, ends = 0, set(cuts)
    for node in nodes:
        if node in varying:
            part[node] = current
        current += node in ends
    _give_each_part_its_constants(graph, nodes, varying, part)
    graph.lint()
    module.recompile()
    split = split_module(module, module, lambda node: part[node], keep_original_order=True)
    parts = [child for name, child in split.named_children() if name.startswith("submod_")]
    for child in cast("list[fx.GraphModule]", parts):
        for node in child.graph.nodes:
            node.meta.clear()  # of the dry run
    return parts


def _give_each_part_its_constants(
    graph: fx.Graph, nodes: Sequence[fx.Node], varying: set[fx.Node], part: dict[fx.Node, int]
) -> None:
    """Copy what does not depend on the images into every part that uses it, so that only one tensor flows on."""
    for node in reversed(nodes):
        if node in varying or node.op == "output":
            continue
        users: dict[int, list[fx.Node]] = {}
        for user in node.users:
            users.setdefault(part.get(user, max(part.values())), []).append(user)
        for index, own in enumerate(sorted(users)):
            if index == 0:
                part[node] = own
                continue
            with graph.inserting_after(node):
                copy = graph.node_copy(node, lambda argument: argument)
            part[copy] = own
            for user in users[own]:
                user.replace_input_with(node, copy)


def _count_classes(backbone: nn.Module, input_shape: tuple[int, int, int], expected: int | None) -> int:
    parameter = next(backbone.parameters())
    images = torch.zeros(2, *input_shape, device=parameter.device, dtype=parameter.dtype)
    with torch.no_grad():
        output = logits_of(backbone(images))
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(
            f"expected a classifier that maps 2 images to logits (2, C); {type(backbone).__name__} gives {shape}"
        )
    if expected is not None and output.shape[1] != expected:
        raise UserError(
            f"expected a backbone for {expected} classes; {type(backbone).__name__} has {output.shape[1]} "
            "(its classifier is kept as the last exit: build it for your classes)"
        )
    return output.shape[1]


def _check_same(backbone: nn.Module, model: StagedModel, samples: int) -> None:
    """Raise CannotSplitError unless the stages give the backbone's logits, at a batch size other than the trace's."""
    parameter = next(backbone.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(samples, *model.input_shape, generator=generator).to(parameter.device, parameter.dtype)
    with torch.no_grad(), evaluating(model):
        try:
            with unchanged(backbone):
                expected = logits_of(backbone(images))
            with unchanged(backbone):
                same = torch.equal(expected, model.forward_last(images))
        except (RuntimeError, TypeError, ValueError) as error:
            raise cannot_split(backbone, str(error)) from error
    if not same:
        raise cannot_split(backbone, "run in parts it gives other logits than whole")


class _Together(nn.Module):
    """The body of the first stage of a network that is left whole: the backbone, and what its exits see."""

    def __init__(self, backbone: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.backbone = backbone
        self.names = tuple(names)

    def forward(self, images: Tensor) -> list[Tensor]:
        seen: dict[str, Tensor] = {}
        hooks = [self.backbone.get_submodule(name).register_forward_hook(_record(seen, name)) for name in self.names]
        try:
            logits = logits_of(self.backbone(images))
        finally:
            for hook in hooks:
                hook.remove()
        return [*(seen[name] for name in self.names), logits]


def _record(seen: dict[str, Any], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        seen[name] = output

    return hook


class _Drop(nn.Module):
    """The body of a later stage of such a network: what the exit before it saw is done with."""

    def forward(self, state: State) -> State:
        return state[1:]


class _First(nn.Module):
    """A head on the first of several features."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, state: State) -> Tensor:
        return self.head(state[0])


def _together(
    backbone: nn.Module,
    exits: int,
    at: Sequence[str] | None,
    num_classes: int,
    head: str | HeadFactory,
    input_shape: tuple[int, int, int],
) -> ExitedModel:
    places = _places_left_whole(backbone, input_shape)
    if at is None:  # of modules within modules, the outer ones
        depth = min(name.count(".") for name in places)
        while sum(name.count(".") <= depth for name in places) < exits - 1 and depth < 9:
            depth += 1
        places = {name: place for name, place in places.items() if name.count(".") <= depth}
    points = _choose(places, exits, at, "")
    heads = [suited_head(point.feature, num_classes, head) for point in points]
    bodies: list[nn.Module] = [_Together(backbone, [point.name for point in points]), *(_Drop() for _ in points)]
    stages = [Stage(body, _First(each)) for body, each in zip(bodies, [*heads, nn.Identity()], strict=True)]
    return ExitedModel(stages, num_classes, input_shape, points, skips=False)


def _places_left_whole(backbone: nn.Module, input_shape: tuple[int, int, int]) -> dict[str, _Place]:
    """As :func:`_places`, by watching what submodules return: exits can go after any that returns a feature."""
    seen: list[tuple[str, Any, int]] = []

    def watch(name: str) -> Any:
        return lambda module, args, output: seen.append((name, output, counter.get_total_flops()))

    hooks = [module.register_forward_hook(watch(name)) for name, module in backbone.named_modules() if name]
    parameter = next(backbone.parameters())
    images = torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype)
    try:
        with torch.no_grad(), evaluating(backbone), FlopCounterMode(display=False) as counter:
            backbone(images)
    finally:
        for hook in hooks:
            hook.remove()
    total = counter.get_total_flops()
    calls = Counter(name for name, *_ in seen)
    places: dict[str, _Place] = {}
    prefix, blocks = _prefix(backbone), _blocks(backbone)
    for name, output, spent in seen:
        feature = Feature.of(output.shape, prefix, input_shape[1:]) if isinstance(output, Tensor) else None
        if feature is not None and calls[name] == 1 and 0 < spent < total:
            places[name] = _Place(ExitPoint(name, spent / total, feature), None, name in blocks)
    return places
