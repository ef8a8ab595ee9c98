"""``exitwise calibrate``, ``evaluate`` and ``predict``: what is done with a trained run."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from exitwise.catalogue.formats import FORMATS
from exitwise.catalogue.lookup import summaries
from exitwise.cli.progress import plain_console
from exitwise.deploy.bundle import check_out, is_bundle
from exitwise.errors import UserError
from exitwise.exiting.wish import check_wish
from exitwise.settings.checks import check_device, check_run_folder
from exitwise.storage.files import check_output, expand, to_csv, write_text

if TYPE_CHECKING:
    from rich.console import Console

    from exitwise.runs.folder import Calibration

    Format = str
else:
    Format = Literal[tuple(FORMATS)]


def calibrate(
    run: Path,
    *,
    budget: float | None = None,
    macs: str | None = None,
    latency: str | None = None,
    p: float | None = None,
    proportions: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    max_accuracy_drop: float | None = None,
    confidence: float | None = None,
    risk: Literal["accuracy-drop", "disagreement"] | None = None,
    thresholds: Literal["geometric", "searched"] = "geometric",
    measure: Literal["max-probability", "margin", "entropy", "patience"] = "max-probability",
    temperature: bool = False,
    device: str = "auto",
) -> None:
    """Find exit thresholds for a budget or an accuracy on held-out images, and store them in the run.

    Examples:

        exitwise calibrate runs/digits --budget 0.5
        exitwise calibrate runs/cifar --macs 20M
        exitwise calibrate runs/cifar --latency 5ms --device cpu
        exitwise calibrate runs/cifar --proportions 0.4,0.3,0.1,0.1,0.1
        exitwise calibrate runs/photos --max-accuracy-drop 0.01
        exitwise calibrate runs/photos --max-accuracy-drop 0.01 --confidence 0.95

    Parameters
    ----------
    run
        Run folder.
    budget
        Share of the full network's MACs to spend on average.
    macs
        Mean multiply-accumulates per image, such as 20M or 1.5G.
    latency
        Mean time per image, one by one, on this machine as it is now, such as 5ms or 800us.
    p
        Budget parameter: share k of exits is p^k, normalised.
    proportions
        Share of images that leave at each exit.
    max_accuracy_drop
        Spend as little as loses no more accuracy than this against the full network, on the held-out images.
    confidence
        Make that a guarantee for images to come, which fails with probability 1 - confidence at most.
    risk
        What the guarantee is about: accuracy-drop, by default, or disagreement, the images classified otherwise than by
        the full network.
    thresholds
        geometric: of the paper's family; searched: those that do best on the held-out images.
    measure
        What an exit's confidence is.
    temperature
        Fit a temperature per exit first.
    device
        auto, cpu, cuda, ...
    """
    amount = None if macs is None else parse_macs(macs)
    seconds = None if latency is None else parse_seconds(latency)
    shares = None if proportions is None else parse_numbers(proportions, "proportions")
    wishes: dict[str, Any] = {
        "budget": budget,
        "macs": amount,
        "latency": seconds,
        "p": p,
        "proportions": shares,
        "max_accuracy_drop": max_accuracy_drop,
    }
    check_wish(wishes, confidence, thresholds, risk)
    check_run_folder(run)
    check_device(device)

    from exitwise.workflows import train as workflow

    calibration = workflow.calibrate(
        run,
        **wishes,
        confidence=confidence,
        risk=risk,
        thresholds=thresholds,
        measure=measure,
        temperature=temperature,
        device=device,
    )
    console = plain_console()
    print_calibration(console, calibration)
    console.print(f"stored in {run / 'calibration.json'}; next: exitwise evaluate {run}")


def print_calibration(console: Console, calibration: Calibration) -> None:
    """Thresholds, and what they do on the calibration images."""
    from exitwise.cli.tables import point_rows
    from exitwise.evaluation.outputs import OperatingPoint

    thresholds = ", ".join("none leaves" if t is None else f"{t:.4f}" for t in calibration.policy.thresholds)
    console.print(f"thresholds of exits 1 to {calibration.policy.exits - 1}: {thresholds}")
    for name, figure in point_rows(OperatingPoint(**calibration.expected), calibration.exit_macs[-1]):
        console.print(f"{name} on the calibration images: {figure}")
    if calibration.exit_seconds is not None:
        times = zip(calibration.expected["shares"], calibration.exit_seconds, strict=True)
        mean = 1000 * sum(share * seconds for share, seconds in times)
        console.print(f"mean time on the calibration images: {mean:.3g} ms, one by one on this machine")
    if calibration.guarantee is not None:
        console.print(describe_guarantee(calibration))


def describe_guarantee(calibration: Calibration) -> str:
    """What is guaranteed, or that nothing can be."""
    guarantee = calibration.guarantee
    assert guarantee is not None
    tolerance = calibration.budget["max_accuracy_drop"]
    what = {
        "accuracy-drop": f"accuracy at most {100 * tolerance:g} points below the full network's",
        "disagreement": f"at most {100 * tolerance:g} % of images classified otherwise than by the full network",
    }[guarantee["risk"]]
    if guarantee["holds"]:
        with_probability = f"guaranteed with probability {guarantee['confidence']:.12g}"
        return f"{with_probability}: {what} (tested on {guarantee['tested']} images)"
    return (
        f"no guarantee: {guarantee['tested']} images are too few, or the early exits too weak, for {what} with "
        f"probability {guarantee['confidence']:.12g}; nobody leaves early"
    )


def evaluate(run: Path, *, device: str = "auto") -> None:
    """Measure a run on its test images: every exit alone, the curve over 39 budgets, and the calibrated policy.

    Example:

        exitwise evaluate runs/digits

    Parameters
    ----------
    run
        Run folder.
    device
        auto, cpu, cuda, ...
    """
    check_run_folder(run)
    check_device(device)

    from exitwise.cli.tables import evaluation_table
    from exitwise.workflows import train as workflow

    evaluation = workflow.evaluate(run, device)
    console = plain_console()
    console.print(evaluation_table(evaluation))
    if evaluation.left_out:
        console.print(f"{evaluation.left_out} broken test images left out; see {run / 'skipped_images.csv'}")
    console.print(f"stored in {run / 'evaluation.json'} and {run / 'figures'}")


def predict(
    run: Path, files: list[Path], *, output: Path | None = None, overwrite: bool = False, device: str = "auto"
) -> None:
    """Classify images with a calibrated run or an exported bundle, each as deep as it needs.

    Examples:

        exitwise predict runs/photos holiday.jpg
        exitwise predict photos.bundle holiday.jpg
        exitwise predict runs/photos ./inbox --output labels.csv

    Parameters
    ----------
    run
        Calibrated run folder, or a folder that `exitwise export` wrote (which needs onnxruntime, and no torch).
    files
        Images, or folders of images.
    output
        Write a .csv or .json file in place of the table.
    overwrite
        Replace that file if it exists.
    device
        auto, cpu, cuda, ...
    """
    if output is not None:
        if output.suffix not in (".csv", ".json"):
            raise UserError(f"expected an output file that ends in .csv or .json; got {output}")
        check_output(output, overwrite)

    check_device(device)

    from exitwise.cli.tables import predictions_table

    if is_bundle(run):
        if device not in ("auto", "cpu"):
            raise UserError(f"expected device auto or cpu for a bundle, which runs by ONNX Runtime there; got {device}")

        from exitwise.deploy import onnx_runner as runtime

        predictions = runtime.predict(run, expand(files))
    else:
        check_run_folder(run)
        images = expand(files)

        from exitwise.workflows import train as workflow

        predictions = workflow.predict(run, images, device)
    console = plain_console()
    if output is None:
        console.print(predictions_table(predictions))
    else:
        rows = [asdict(each) for each in predictions]
        table = to_csv(list(rows[0]), (row.values() for row in rows))
        write_text(output, json.dumps(rows, indent=2) + "\n" if output.suffix == ".json" else table)
        console.print(f"{len(predictions)} predictions written to {output}")
    mean = sum(each.compute for each in predictions) / len(predictions)
    console.print(f"{len(predictions)} images, {100 * mean:.1f} % of the full network's MACs on average")


def export(
    run: Path,
    *,
    out: Path | None = None,
    format: Annotated[Format, Parameter(help=summaries(FORMATS))] = "onnx",
    overwrite: bool = False,
) -> None:
    """Write a calibrated run for another runtime: files that run without torch.

    Examples:

        exitwise export runs/photos --out photos.bundle
        exitwise predict photos.bundle holiday.jpg

    Parameters
    ----------
    run
        Calibrated run folder.
    out
        Folder to write; by default RUN/onnx.
    overwrite
        Replace an export that is there, as after another calibration.
    """
    check_run_folder(run)
    out = out or run / format
    check_out(out, overwrite)

    from exitwise.workflows import train as workflow

    files = workflow.export(run, out, format, overwrite=overwrite)
    console = plain_console()
    for file in files:
        console.print(f"{file.name:16}{file.stat().st_size / 2**20:8.1f} MiB")
    console.print(f"written to {out} and checked against the network")
    if format == "onnx":
        console.print(f"next: exitwise predict {out} IMAGE")


def parse_macs(text: str) -> float:
    """``20M`` to 2e7.

    Raises:
        UserError: if the text is no positive amount.
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kKMG]?)\s*(?:MACs)?\s*", text)
    try:
        if match:
            return float(match[1]) * {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}[match[2]]
    except ValueError:
        pass
    raise UserError(f"expected MACs as a number with k, M or G, such as 20M; got {text!r}")


def parse_seconds(text: str) -> float:
    """``5ms`` to 0.005.

    Raises:
        UserError: if the text is no positive time with a unit.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*(us|µs|ms|s)\s*", text)
    if match and float(match[1]) > 0:
        return float(match[1]) * {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}[match[2]]
    raise UserError(f"expected a time with its unit (us, ms or s), such as 5ms; got {text!r}")


def parse_numbers(texts: list[str], name: str) -> list[float]:
    """Numbers given apart or with commas.

    Raises:
        UserError: if one is no number.
    """
    parts = [part for text in texts for part in text.split(",") if part]
    try:
        return [float(part) for part in parts]
    except ValueError as error:
        raise UserError(f"expected numbers for {name}, such as 0.5,0.3,0.2; got {' '.join(texts)!r}") from error
