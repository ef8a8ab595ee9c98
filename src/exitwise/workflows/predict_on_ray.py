"""Very many images by Ray Data: read, then a step per stage, then written in partitions.

A row that has left carries its answer and no activations through the steps that are left; a row that stays carries the
bytes of its state.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.dataset
import ray
from numpy.typing import NDArray
from ray.exceptions import RayError

from exitwise.deploy.chain import Inside
from exitwise.deploy.onnx_runner import OnnxRunner
from exitwise.deploy.predictions import Broken, Prediction, Tally, Written, path_of
from exitwise.deploy.split import entered, stages_tried
from exitwise.deploy.states import described
from exitwise.errors import UserError, in_a_line
from exitwise.processes.cluster import cluster
from exitwise.storage.files import why_not_written
from exitwise.storage.folders import IMAGE_SUFFIXES
from exitwise.storage.images import BrokenImageError, ImageLike
from exitwise.storage.listing import Listed, Member, listed, listed_texts
from exitwise.storage.rows import schema_of, text_of
from exitwise.workflows.classifier import a_text, fates_of

BATCH, MOST = 64, 1024
"""Images at a time in a stage; rows at a time, of which the most have left."""

BLOCK = 256
"""Images that are planned together."""

PARTITION = 50_000
"""Rows of a partition, or more."""

CARRIED = "carried/"

FILES = pyarrow.schema(
    [
        *((name, pyarrow.binary()) for name in ("name", "path", "bytes")),
        *((name, pyarrow.int64()) for name in ("offset", "size")),
    ]
)
"""What is known of an image in a file, or of its content."""

WRITERS = {".parquet": "parquet", "": "parquet", ".csv": "csv", ".jsonl": "json"}
"""By the ending of the folder's name."""


def predict_on_ray(
    output: str | PathLike[str],
    source: str | PathLike[str],
    files: Any,
    fields: Sequence[str],
    device: str,
    top: int,
    strict: bool,
    overwrite: bool,
) -> Written:
    """Classify images or texts by a bundle on a Ray cluster, and write a folder of partitions.

    Raises:
        UserError: if the bundle is not what it says, there is nothing to classify, or the folder cannot be written.
    """
    runner = OnnxRunner(Path(source), 1)
    if top > len(runner.classes):
        raise UserError(f"expected at most {len(runner.classes)} classes for top; got {top}")
    place = str(output)
    if (suffix := os.path.splitext(place)[1]) not in WRITERS:
        raise UserError(f"expected a folder that ends in {' or '.join(filter(None, WRITERS))}; got {place}")
    of_texts = runner.manifest.noun == "texts"
    urls = [] if of_texts else _urls(files)
    found = listed_texts(files) if of_texts else [] if urls else listed(files)
    target = _target(place, overwrite)
    schema = pyarrow.schema([*schema_of(fields), ("state", pyarrow.binary())])
    stay = [1.0, *(1 - np.cumsum(runner.calibration.expected.get("shares", [])))]
    bundle = str(Path(source).absolute())
    with cluster(), _quietly():
        share = _share(3 if of_texts else len(runner.chain) + 2)
        pool = ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, int(_cores() / share)))
        how = {"num_cpus": share, "compute": pool}
        rows = _of_urls(urls) if urls else _of_samples(found)
        step, given = (
            (_Texts, (strict, bundle, device, top, schema)) if of_texts else (_Reader, (bundle, strict, schema))
        )
        rows = rows.map_batches(step, fn_constructor_args=given, batch_size=BATCH, batch_format="pyarrow", **how)
        for k in range(0 if of_texts else len(runner.chain)):
            inside = stay[k] if k < len(stay) else 1.0
            rows = rows.map_batches(
                _Stage,
                fn_constructor_args=(k, bundle, device, top, schema),
                batch_size=min(MOST, round(BATCH / max(inside, BATCH / MOST))),
                batch_format="pyarrow",
                **how,
            )
        write = getattr(rows.drop_columns(["state"]), f"write_{WRITERS[suffix]}")
        try:
            write(target, min_rows_per_file=PARTITION)
        except RayError as error:
            said = re.findall(r"^exitwise\.[\w.]+: (.+)$", str(error), re.MULTILINE)  # within a text of tracebacks
            raise UserError(said[-1] if said else f"Ray Data does not run it: {in_a_line(error)}") from error
        except OSError as error:
            raise UserError(f"expected a place to write {place}; {in_a_line(error)}") from error
    tally = _tally(target, WRITERS[suffix], schema_of(fields))
    if target == place:
        return Written(Path(place), tally, runner.manifest.noun)
    if not tally.answered:
        first = tally.broken[0]
        shutil.rmtree(target)
        expected = "a text at" if of_texts else "an image in"
        raise UserError(f"expected {expected} {first.file}; could not read it: {first.reason}")
    if os.path.isdir(place):
        shutil.rmtree(place)
    os.replace(target, place)
    return Written(Path(place), tally, runner.manifest.noun)


def _urls(files: Any) -> list[str]:
    """Return the places in object stores that are named; empty where they are on this machine."""
    given = [files] if isinstance(files, (str, bytes)) or not isinstance(files, (list, tuple)) else files
    urls = [each for each in given if isinstance(each, str) and "://" in each]
    if urls and len(urls) < len(given):
        raise UserError(f"expected all images in object stores, or all in files; got {urls[0]} among others")
    if shards := [each for each in urls if each.endswith(".tar")]:
        raise UserError(f"shards are read from files: copy {shards[0]} to where all machines reach it")
    return urls


def _target(place: str, overwrite: bool) -> str:
    """Return where partitions are written: in an object store at once, else beside their place until all are there."""
    if "://" in place:
        return place
    path = Path(place)
    if path.exists():
        strange = not path.is_dir() or any(each.suffix[1:] not in WRITERS.values() for each in path.iterdir())
        if strange or not overwrite:
            raise UserError(
                f"expected a new folder for partitions; {path} exists"
                + (" and holds something else" if strange else "; give --overwrite to replace it")
            )
    if why := why_not_written(path.parent):
        raise UserError(f"expected a place to write {path.name}; {path.parent} is none: {why}")
    target = path.absolute().with_name(path.name + ".partial")
    shutil.rmtree(target, ignore_errors=True)
    return str(target)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep rows in order, and let Ray Data draw nothing."""
    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars, context.execution_options.preserve_order
    context.enable_progress_bars, context.execution_options.preserve_order = False, True
    try:
        yield
    finally:
        context.enable_progress_bars, context.execution_options.preserve_order = before


def _cores() -> float:
    return float(ray.cluster_resources().get("CPU", 1))


def _share(steps: int) -> float:
    """Return the cores that a process of a step reserves: one, or less where not every step would find one."""
    return min(1.0, max(0.05, round(_cores() / (2 * steps), 2)))


def _of_samples(found: Sequence[Listed]) -> Any:
    table = pyarrow.Table.from_pylist([_row_of(*each) for each in found], FILES)
    return ray.data.from_arrow(table, override_num_blocks=-(-len(found) // BLOCK))


def _row_of(name: str, image: ImageLike | Member) -> dict[str, Any]:
    row: dict[str, Any] = {"name": os.fsencode(name)}
    if isinstance(image, Member):
        return {**row, "path": os.fsencode(image.shard.absolute()), "offset": image.offset, "size": image.size}
    if isinstance(image, str):  # a text: images are named by paths
        return {**row, "bytes": image.encode(errors="replace")}
    if isinstance(image, PathLike):
        return {**row, "path": os.fsencode(Path(image).absolute())}
    if isinstance(image, bytes):
        return {**row, "bytes": image}
    raise UserError(f"on Ray images are files or the bytes of files; got {type(image).__name__}")


def _of_urls(urls: list[str]) -> Any:
    endings = [ending.removeprefix(".") for ending in IMAGE_SUFFIXES]
    return ray.data.read_binary_files(urls, include_paths=True, file_extensions=endings)


class _Reader:
    """Reads images; of each there is a state before the first stage, or an error.

    Args:
        bundle: a folder.
        strict: whether a broken image ends it all.
        schema: of the rows.
    """

    def __init__(self, bundle: str, strict: bool, schema: pyarrow.Schema) -> None:
        self.runner, self.strict, self.schema = OnnxRunner(bundle, 1), strict, schema
        self.runner.chain.keep(range(0))

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        rows, read = [], []
        for each in batch.to_pylist():
            name = os.fsdecode(each["name"]) if "name" in each else each["path"]
            row: dict[str, Any] = {"file": path_of(name)}
            try:
                read.append(self.runner.read(_content(each)))
                row["state"] = b""
            except BrokenImageError as error:
                if self.strict:
                    raise UserError(str(error)) from None
                row = Broken(name, error.reason).row()
            rows.append(row)
        if read:
            given = {name: np.stack([each[name] for each in read]) for name in read[0]}
            states = iter(packed(self.runner.chain.enter(self.runner.check_inputs(given))))
            for row in rows:
                if "state" in row:
                    row["state"] = next(states)
        return _table(rows, self.schema)


def _content(row: dict[str, Any]) -> Any:
    if row.get("bytes") is not None:
        return row["bytes"]
    path = Path(os.fsdecode(row["path"]))
    return path if row["offset"] is None else Member(path, row["offset"], row["size"]).read()


class _Answering:
    """Gives answers as rows.

    Args:
        bundle: a folder.
        device: ONNX Runtime's provider.
        top: likeliest classes to name.
        schema: of the rows.
    """

    def __init__(self, bundle: str, device: str, top: int, schema: pyarrow.Schema) -> None:
        self.runner = OnnxRunner(bundle, 1, provider="cpu" if device == "auto" else device)
        self.top, self.schema = top, schema

    def fates(self, result: Any) -> Iterator[tuple[Any, ...]]:
        """Return the fates of samples, as a prediction takes them."""
        return iter(fates_of(result, self.runner.classes, self.runner.full_macs, self.top))


class _Texts(_Answering):
    """Classifies texts, by all stages at once: a state has as many tokens as the longest text beside it.

    Args:
        strict: whether an empty text ends it all.
        answering: as of :class:`_Answering`.
    """

    def __init__(self, strict: bool, *answering: Any) -> None:
        super().__init__(*answering)
        self.strict = strict

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        given = [(os.fsdecode(each["name"]), each["bytes"].decode()) for each in batch.to_pylist()]
        rows: list[dict[str, Any]] = [{"file": name} for name, _ in given]
        read = []
        for row, (name, text) in zip(rows, given, strict=True):
            try:
                read.append((row, a_text(text)))
            except BrokenImageError as error:
                if self.strict:
                    raise UserError(str(error)) from None
                row |= Broken(name, error.reason).row()
        if read:
            fates = self.fates(self.runner([text for _, text in read]))
            for (row, _), fate in zip(read, fates, strict=True):
                row |= Prediction(row["file"], *fate).row()
        return _table(rows, self.schema)


class _Stage(_Answering):
    """Runs a stage on the rows that have not left.

    Args:
        stage: which, 0-based.
        answering: as of :class:`_Answering`.
    """

    def __init__(self, stage: int, *answering: Any) -> None:
        super().__init__(*answering)
        self.stage = stage
        before = [entered(self.runner), *(inside for _, inside in stages_tried(self.runner))]
        self.layout = described(before[stage])
        self.runner.chain.keep(range(stage, stage + 1))

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        states = batch.column("state")
        if states.null_count == len(states):
            return batch
        rows = batch.to_pylist()
        inside = [row for row in rows if row["state"] is not None]
        samples = unpacked([row["state"] for row in inside], self.layout)
        result, places, rest = self.runner.through(samples, self.runner.thresholds, self.stage, self.stage + 1)
        for row, fate in zip(inside, self.fates(result), strict=True):
            row |= Prediction(row["file"], *fate).row() | {"state": None}
        for place, state in zip(places.tolist(), packed(rest) if len(places) else (), strict=True):
            left = inside[place]
            left |= {name: None for name in left if name not in ("file", "state")} | {"state": state}
        return _table(rows, self.schema)


def _table(rows: list[dict[str, Any]], schema: pyarrow.Schema) -> pyarrow.Table:
    return pyarrow.Table.from_pylist([{name: text_of(row.get(name)) for name in schema.names} for row in rows], schema)


def packed(inside: Inside) -> list[bytes]:
    """Return the bytes of each sample's arrays, one after the other."""
    arrays = [*inside.arrays.values(), *(inside.carried or {}).values()]
    parts = [np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8) for array in arrays]
    return [row.tobytes() for row in np.concatenate(parts, axis=1)]


def unpacked(rows: Sequence[bytes], layout: dict[str, tuple[Any, ...]]) -> Inside:
    """Return samples from their bytes, by the type and the shape of each array."""
    together = np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1)
    arrays: dict[str, NDArray[Any]] = {}
    place = 0
    for name, (kind, *shape) in layout.items():
        size = int(np.prod(shape, dtype=int)) * np.dtype(kind).itemsize
        part = np.ascontiguousarray(together[:, place : place + size])
        arrays[name] = part.view(kind).reshape(len(rows), *shape)
        place += size
    carried = {name.removeprefix(CARRIED): array for name, array in arrays.items() if name.startswith(CARRIED)}
    return Inside({name: array for name, array in arrays.items() if not name.startswith(CARRIED)}, carried or None)


def _tally(place: str, kind: str, schema: pyarrow.Schema) -> Tally:
    """Return the rows that were written, counted."""
    tally = Tally()
    for batch in pyarrow.dataset.dataset(place, schema, format=kind).to_batches():
        tally.add({**row, "error": row["error"] or None} for row in batch.to_pylist())
    return tally
