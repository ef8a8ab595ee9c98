"""``exitwise advise``: what to try on some images, before anything is trained."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from exitwise.budgets import parse_macs, parse_seconds
from exitwise.cli.progress import plain_console
from exitwise.settings.checks import check_data, check_device


def advise(
    *,
    data: str,
    latency: str | None = None,
    macs: str | None = None,
    weights: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    image_size: int | None = None,
    images: int = 3000,
    exits: int = 4,
    device: str = "auto",
) -> None:
    """Say what to try on some images within a limit, exits or not, before anything is trained.

    Takes minutes, most of them for looking at images and for exports to ONNX. Nothing is downloaded.

    Examples:

        exitwise advise --data ./photos --latency 10ms
        exitwise advise --data ./photos --macs 500M --weights resnet18=resnet18.safetensors resnet50=resnet50.pth

    Parameters
    ----------
    data
        A folder of images, or the name of a data set; only training images are used.
    latency
        Most time per image, one by one, such as 10ms; with exits on average.
    macs
        Most multiply-accumulates per image, such as 500M, in place of a latency.
    weights
        NAME=FILE for each network of timm whose weights are at hand: its features are looked at.
    image_size
        Side of the images for all networks; by default each network's own.
    images
        How many to look at, at most.
    exits
        Number of exits, the network's own included.
    device
        Where to look at images: auto, cpu, cuda, ...
    """
    check_data(data)
    check_device(device)
    seconds = parse_seconds(latency) if latency is not None else None
    budget = parse_macs(macs) if macs is not None else None
    from exitwise.advising.choice import parse_weights

    files = parse_weights(weights or [])

    import exitwise as ew

    console = plain_console()
    advice = ew.advise(
        data,
        latency=seconds,
        macs=budget,
        weights=files,
        image_size=image_size,
        images=images,
        exits=exits,
        device=device,
        tell=console.print,
    )
    console.print(advice)
