"""``exitwise models``."""

from __future__ import annotations

from typing import Literal

from rich.console import Console
from rich.table import Table

from exitwise.catalogue.backbones import BACKBONE_EXITS
from exitwise.catalogue.models import MODELS
from exitwise.errors import UserError
from exitwise.shown import macs, milliseconds, percent


def models(
    *, exits: str | None = None, image_size: int | None = None, place_by: Literal["macs", "latency"] = "macs"
) -> None:
    """List the networks with the cost of leaving at each exit; or show where exits can go on a backbone.

    Examples:

        exitwise models
        exitwise models --exits timm/resnet50
        exitwise models --exits timm/resnet50 --place-by latency

    Parameters
    ----------
    exits
        A backbone, such as timm/resnet50, torchvision/vit_b_16 or hf/microsoft/resnet-50.
    image_size
        Side of its images; by default what the backbone was made for.
    place_by
        What exits are put at equal shares of: multiply-accumulates, or the time of one image on this machine's CPU,
        which is measured, and shown too.
    """
    if exits is not None:
        _exits_of(exits, image_size, place_by)
        return
    if place_by != "macs":
        raise UserError(f"place_by chooses where exits of a backbone go (--exits NAME); got {place_by} without one")
    table = Table()
    for name in ("model", "input", "parameters", "MACs to each exit"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for model in MODELS.values():
        shape = "x".join(map(str, model.input_shape))
        table.add_row(model.name, shape, f"{model.params / 1e6:.3g}M", " ".join(macs(value) for value in model.macs))
    console = Console()
    console.print(table)
    console.print("and any classifier of timm, torchvision or Hugging Face: exitwise models --exits timm/resnet50")


def _exits_of(name: str, image_size: int | None, place_by: Literal["macs", "latency"]) -> None:
    if image_size is not None and image_size < 1:
        raise UserError(f"expected image_size as a number of pixels; got {image_size}")
    from exitwise.settings.checks import check_backbone

    check_backbone(name)

    from exitwise.benching.timing import measure_exit_seconds
    from exitwise.models import count_cost
    from exitwise.models.backbones.attach import add_exits, exit_points
    from exitwise.models.backbones.libraries import create_backbone, data_config
    from exitwise.models.backbones.places import CHEAPEST, DEAREST

    size = image_size or data_config(name).image_size
    backbone = create_backbone(name, input_shape=(3, size, size))
    points = exit_points(backbone, (3, size, size))
    if not points:
        raise UserError(f"{name} has no place for an early exit (skip=False, --no-skip, evaluates all exits together)")
    useful = sum(CHEAPEST <= point.share <= DEAREST for point in points)
    exits = min(BACKBONE_EXITS, useful + 1)
    table = Table(title=f"{name}, images of {size}x{size}")
    times = ("time to it",) if place_by == "latency" else ()
    for column in ("after", "feature", "MACs", f"{exits} exits", "params", "MACs to it", *times):
        table.add_column(column, justify="left" if column in ("after", "feature") else "right", overflow="fold")
    model = add_exits(backbone.eval(), exits=exits, input_shape=(3, size, size), place_by=place_by)
    cost = count_cost(model)
    said = [
        [f"exit {k}", f"{params / 1e6:.3g}M", macs(spent)]
        for k, (params, spent) in enumerate(zip(cost.params, cost.macs, strict=True), start=1)
    ]
    if times:
        for each, seconds in zip(said, measure_exit_seconds(model), strict=True):
            each.append(milliseconds(seconds))
    chosen = dict(zip([*(point.name for point in model.points), None], said, strict=True))
    for point in points:
        shape = [point.feature.channels, *point.feature.size]
        if point.feature.kind != "map":
            shape = [*shape[1:], shape[0]]
        feature = "x".join(map(str, shape)) + (" tokens" if point.feature.kind == "tokens" else "")
        table.add_row(point.name, feature, percent(point.share), *chosen.get(point.name, ()))
    table.add_row("its own classifier", "", percent(1.0), *chosen[None])
    Console().print(table)
