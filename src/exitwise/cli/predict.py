"""``exitwise predict``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from exitwise.cli.progress import plain_console
from exitwise.deploy.bundle import is_bundle
from exitwise.errors import UserError
from exitwise.settings.checks import check_device, check_run_folder
from exitwise.storage.files import check_output, to_csv, write_text


def predict(
    run: Path,
    files: list[Path],
    *,
    output: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    threads: int | None = None,
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
        auto, cpu, cuda, ...; of a bundle also openvino, coreml, ..., where the installed ONNX Runtime has it
    threads
        Of a bundle on the CPU; by default as many as cores may be used.
    """
    if output is not None:
        if output.suffix not in (".csv", ".json"):
            raise UserError(f"expected an output file that ends in .csv or .json; got {output}")
        check_output(output, overwrite)

    check_device(device)

    if not is_bundle(run):
        check_run_folder(run)

    import exitwise as ew

    predictions = ew.predict(run, files, device, threads=threads)
    console = plain_console()
    if output is None:
        console.print(predictions)
    else:
        rows = [asdict(each) for each in predictions]
        table = to_csv(list(rows[0]), (row.values() for row in rows))
        write_text(output, json.dumps(rows, indent=2) + "\n" if output.suffix == ".json" else table)
        console.print(f"{len(predictions)} predictions written to {output}")
        console.print(predictions.summary)
