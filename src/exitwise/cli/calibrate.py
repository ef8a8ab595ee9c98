"""``exitwise calibrate``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from exitwise.budgets import parse_macs, parse_numbers, parse_seconds
from exitwise.catalogue.measures import MeasureName
from exitwise.cli.progress import plain_console
from exitwise.deploy.asked import Asked, Wishes
from exitwise.deploy.bundle import is_bundle
from exitwise.deploy.calibration import CALIBRATION
from exitwise.errors import UserError
from exitwise.exiting.wish import DropFrom, Each
from exitwise.settings.checks import check_device, check_run_folder
from exitwise.shown import pasteable


def calibrate(
    run: Path,
    *,
    budget: float | None = None,
    macs: str | None = None,
    latency: str | None = None,
    p: float | None = None,
    proportions: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    max_accuracy_drop: float | None = None,
    guarantee: Annotated[float | None, Parameter(name=["--guarantee", "--confidence"])] = None,
    guarantee_each: Each | None = None,
    risk: Literal["accuracy-drop", "disagreement"] | None = None,
    drop_from: DropFrom = "best",
    abstain_below: float | None = None,
    answered_accuracy: float | None = None,
    thresholds: Literal["geometric", "same", "searched"] | None = None,
    measure: MeasureName | None = None,
    temperature: bool = False,
    compare: Annotated[bool, Parameter(negative=())] = False,
    data: Path | None = None,
    groups: Path | None = None,
    name: str | None = None,
    device: str = "auto",
) -> None:
    """Find exit thresholds for a budget or an accuracy on held-out images, and store them in the run.

    Examples:

        exitwise calibrate runs/digits --budget 0.5
        exitwise calibrate runs/cifar --macs 20M
        exitwise calibrate runs/cifar --latency 5ms --device cpu
        exitwise calibrate runs/cifar --proportions 0.4,0.3,0.1,0.1,0.1
        exitwise calibrate runs/photos --max-accuracy-drop 0.01
        exitwise calibrate runs/photos --max-accuracy-drop 0.01 --guarantee 0.95
        exitwise calibrate runs/photos --max-accuracy-drop 0.05 --guarantee 0.9 --guarantee-each class
        exitwise calibrate runs/photos --budget 0.5 --answered-accuracy 0.95 --guarantee 0.9
        exitwise calibrate runs/photos --budget 0.2 --name fast
        exitwise calibrate runs/photos --compare
        exitwise calibrate runs/photos --budget 0.5 --groups sites.csv
        exitwise calibrate photos.bundle --data new_photos --budget 0.5

    Parameters
    ----------
    run
        Run folder; with --data also an exported bundle, which needs no torch.
    budget
        Share of the full network's MACs to spend on average; of a cascade, of its last network's alone.
    macs
        Mean multiply-accumulates per image, such as 20M or 1.5G.
    latency
        Mean time per image, one by one, on this machine as it is now, such as 5ms or 800us.
    p
        Budget parameter: share k of exits is p^k, normalised.
    proportions
        Share of images that leave at each exit.
    max_accuracy_drop
        Spend as little as loses no more accuracy than this, a share such as 0.01, on the held-out images and with a
        standard error of the loss in hand.
    guarantee
        Guarantee that for images to come with this probability, such as 0.95.
    guarantee_each
        Let it hold for each class, or each group, and not for the average of all images alone.
    risk
        What the guarantee is about: accuracy-drop, by default, or disagreement, the images classified otherwise than by
        the full network.
    drop_from
        What a loss is counted from: full, the full network, or best: the best single exit, where one is better.
    abstain_below
        Confidence where an image leaves, below which it is not answered; of a bundle its own by default.
    answered_accuracy
        In place of that: how much of what is answered is to be right, with the probability of --guarantee; as much as
        can be is answered then.
    thresholds
        geometric: of the paper's family; same: one for all exits; searched: those that do best on the held-out images.
        By default the measure's own: same for accuracy and deferral, else geometric.
    measure
        How an exit's confidence is read, and its answer; by default max-probability.
    temperature
        Fit a temperature per exit first.
    compare
        Compare all measures on the held-out images, say which to take, and store nothing.
    data
        Where the run's images lie now, if they have moved; or other images, in a folder per class: what differs from
        the run's own is said. Images are known by what they are.
    groups
        Say for each group of images, such as sites or cameras, what is lost: a CSV file with the columns image and
        group. Images are named by their paths, or the ends of them.
    name
        Keep the calibration by this name, beside others; evaluate, export, bench, predict and report take it by
        --calibration.
    device
        auto, cpu, cuda, ...
    """
    amount = None if macs is None else parse_macs(macs)
    seconds = None if latency is None else parse_seconds(latency)
    shares = None if proportions is None else parse_numbers(proportions, "proportions")
    asked: Wishes = {
        "budget": budget,
        "macs": amount,
        "latency": seconds,
        "p": p,
        "proportions": shares,
        "max_accuracy_drop": max_accuracy_drop,
        "guarantee": guarantee,
        "guarantee_each": guarantee_each,
        "risk": risk,
        "drop_from": drop_from,
        "thresholds": thresholds,
        "measure": measure,
        "abstain_below": abstain_below,
        "answered_accuracy": answered_accuracy,
        "temperature": temperature,
    }
    if compare:
        _compare(run, {**asked, "data": data, "groups": groups, "name": name}, device)
        return
    Asked.of(asked, most=math.inf)  # a run that is a cascade may be given a budget of more than 1
    bundle = is_bundle(run) and not (run / "config.yaml").is_file()
    if bundle and data is None:
        raise UserError(
            f"a bundle is calibrated on samples that are given: --data FOLDER or TABLE; got none with {run}"
        )
    if not bundle:
        check_run_folder(run)
    elif name is not None:
        raise UserError(f"a bundle has one calibration; got the name {name} with {run}")
    elif device not in ("auto", "cpu"):
        raise UserError(f"a bundle is calibrated on the cpu, by ONNX Runtime; got {device} with {run}")
    check_device(device)

    import exitwise as ew

    calibration = (
        ew.calibrate_bundle(run, data, groups=groups, **asked)
        if data is not None and bundle
        else ew.calibrate(run, data=data, groups=groups, name=name, device=device, **asked)
    )
    console = plain_console()
    if calibration.guarantee is not None and not calibration.is_kept_promise:
        raise UserError(f"{calibration.promise(calibration.guarantee)}: nothing was stored")
    console.print(calibration)
    more = [] if name is None else ["--calibration", name]
    if calibration.origin is not None and calibration.origin.data is None and data is not None:
        more += ["--data", str(data)]
    one = calibration.noun.removesuffix("s").upper()
    following = pasteable("exitwise", *(["predict", run, one] if bundle else ["evaluate", run, *more]))
    console.print(f"stored in {CALIBRATION.called(name).path(run)}; next: {following}")


def _compare(run: Path, asked: Mapping[str, Any], device: str) -> None:
    aside = ("drop_from", "temperature")
    given = [name for name, value in asked.items() if value is not None and name not in aside]
    if given:
        raise UserError(f"all measures are compared, over all budgets; got {', '.join(given)}")
    check_run_folder(run)
    check_device(device)

    import exitwise as ew

    plain_console().print(ew.compare_measures(run, temperature=asked["temperature"], device=device))
