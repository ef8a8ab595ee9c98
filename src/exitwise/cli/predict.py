"""``exitwise predict``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from exitwise.cli.progress import counting, plain_console
from exitwise.deploy.bundle import is_bundle
from exitwise.errors import UserError
from exitwise.settings.checks import check_device, check_run_folder
from exitwise.storage.rows import check_table

WIDE = 10_000
"""Columns of a table that goes into a pipe or a file, so that nothing in it is folded."""


def predict(
    run: Path,
    files: list[str],
    *,
    output: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    calibration: str | None = None,
    top: int = 0,
    strict: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    threads: int | None = None,
    engine: Literal["local", "ray"] = "local",
) -> None:
    """Classify images or texts with a calibrated run or an exported bundle, each as deep as it needs.

    Examples:

        exitwise predict runs/photos holiday.jpg
        exitwise predict photos.bundle holiday.jpg --top 5
        exitwise predict photos.bundle ./inbox --output labels.csv
        exitwise predict photos.bundle shard-0000.tar --output labels.parquet
        exitwise predict runs/mails "You have won" inbox.csv
        exitwise predict photos.bundle s3://photos/inbox --engine ray --output s3://photos/labels.parquet

    Parameters
    ----------
    run
        Calibrated run folder, or a folder that `exitwise export` wrote (which needs onnxruntime, and no torch).
    files
        Images, folders of images, lists of files (.csv with a column `file`, .txt), or shards (.tar). Where texts are
        classified: texts, tables with a column `text` (.csv, .tsv, .parquet), or files of a text per line (.txt).
    output
        Write a .csv, .json, .jsonl or .parquet file in place of the table, or CSV to standard output (-). The same
        command goes on where it was stopped.
    calibration
        Name of a calibration that a run keeps (calibrate --name); by default the usual one.
    top
        Of a bundle: name so many of the likeliest classes, with their probabilities.
    strict
        Stop at the first image that cannot be read, in place of listing it.
    overwrite
        Replace that file if it exists, and begin anew.
    device
        auto, cpu, cuda, ...; of a bundle also openvino, coreml, ..., where the installed ONNX Runtime has it
    threads
        Of a bundle on the CPU; by default as many as cores may be used.
    engine
        local: this process. ray: Ray Data, with a step per stage of a bundle, on the cluster that RAY_ADDRESS names or
        on this machine; the output is a folder of partitions (.parquet, .csv or .jsonl).
    """
    if top < 0:
        raise UserError(f"expected top from 0; got {top}")
    if engine == "ray" and output is None:
        raise UserError("expected --output with --engine ray; got none")
    if output is not None and output != "-" and engine == "local":
        check_table(Path(output), overwrite)

    check_device(device)

    if not is_bundle(run):
        check_run_folder(run)

    import exitwise as ew
    from exitwise.workflows.classifier import classifies

    if output is None:
        answers = ew.predict(run, files, device, threads=threads, calibration=calibration, top=top, strict=strict)
        plain_console(width=None if sys.stdout.isatty() else WIDE).print(answers)
        return
    with counting(Console(stderr=True), classifies(run)) as count:
        written = ew.predict_to(
            output,
            run,
            files,
            device,
            threads=threads,
            calibration=calibration,
            top=top,
            strict=strict,
            overwrite=overwrite,
            progress=count,
            engine=engine,
        )
    plain_console(stderr=output == "-").print(written)
