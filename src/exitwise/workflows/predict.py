"""Classify images or texts with a calibrated run or an exported bundle, few or very many."""

from __future__ import annotations

import hashlib
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import Any

from exitwise.catalogue.extras import needing_extras
from exitwise.deploy.bundle import is_bundle
from exitwise.deploy.predictions import Broken, Prediction, Predictions, Tally, Written
from exitwise.deploy.sessions import allowed_cores
from exitwise.errors import UserError
from exitwise.shown import Noun
from exitwise.storage.images import BrokenImageError, ImageLike
from exitwise.storage.listing import Listed, listed, listed_texts
from exitwise.storage.rows import GrowingTable, write_csv
from exitwise.workflows.classifier import Classifier, classifies, fates_of, open_classifier

BATCH = 64
"""Images at a time."""

ENGINES = ("local", "ray")

AT_ONCE = 8
"""Images that a thread reads before it is given others."""


def predict(
    source: str | PathLike[str],
    files: ImageLike | Iterable[ImageLike],
    device: str = "auto",
    *,
    threads: int | None = None,
    calibration: str | None = None,
    top: int = 0,
    strict: bool = False,
) -> Predictions:
    """Classify images or texts, each as deep as it needs, and return all answers.

    Args:
        source: a calibrated run folder, or an exported bundle.
        files: an image, a folder of images, a list of files (``.csv`` with a column ``file``, or ``.txt``), a shard
            (``.tar``), or several of them. An image is a path, the bytes of a file, a file that is open, or an array of
            pixels: uint8 (height, width) or (height, width, 3). Of a run or a bundle of texts: a text, a table with a
            column ``text`` (``.csv``, ``.tsv``, ``.parquet``), a file with a text per line (``.txt``), or several.
        device: where to run a run's network; of a bundle ONNX Runtime's provider: cpu, cuda, openvino, coreml, ...
        threads: of a bundle on the CPU; by default as many as cores may be used.
        calibration: of a run, the name of one that it keeps.
        top: of a bundle, likeliest classes to name with their probabilities.
        strict: whether one broken image is an error; else it is listed, unless all are.

    Raises:
        ValueError: without calibration or images, for a damaged bundle, or broken images.
    """
    noun = classifies(Path(source))
    images = listed_texts(files) if noun == "texts" else listed(files)
    classifier = open_classifier(Path(source), device, threads, len(images), top, calibration)
    predictions = Predictions(noun=noun)
    for chunk in _answers(classifier, images, top, strict):
        predictions += [each for each in chunk if isinstance(each, Prediction)]
        predictions.broken += [each for each in chunk if isinstance(each, Broken)]
    _check_any(images, len(predictions), predictions.broken, noun)
    return predictions


def predict_to(
    output: str | PathLike[str],
    source: str | PathLike[str],
    files: ImageLike | Iterable[ImageLike],
    device: str = "auto",
    *,
    threads: int | None = None,
    calibration: str | None = None,
    top: int = 0,
    strict: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    engine: str = "local",
) -> Written:
    """Classify images as :func:`predict` does, and write a row for each as it comes; memory does not grow with them.

    What was stopped goes on with the same call: rows so far lie in ``OUTPUT.partial``. A broken image has a row too,
    with the reason as its ``error``.

    Args:
        output: a file that ends in .csv, .json, .jsonl or .parquet; ``-`` writes CSV to standard output.
        source, files, device, threads, calibration, top, strict: as of :func:`predict`.
        overwrite: whether the file may be replaced, and rows so far be forgotten.
        progress: called with the images done and in all; not on Ray.
        engine: ``local``; or ``ray``, for a bundle: a step of Ray Data for each stage, or one for texts, on the
            cluster that ``RAY_ADDRESS`` names or this machine. The output is a folder of partitions then, ends in
            .parquet, .csv, .jsonl or nothing (Parquet), and is written whole or not at all. Both may be in an object
            store (s3://).

    Raises:
        ValueError: as of :func:`predict`, or for an output that cannot be written or was begun with something else.
    """
    tops = [f"{name}_{rank}" for rank in range(1, top + 1) for name in ("class", "probability")]
    fields = ["file", "prediction", "confidence", "exit", "compute", *tops, "error"]
    if engine not in ENGINES:
        raise UserError(f"expected engine as {' or '.join(ENGINES)}; got {engine}")
    if engine == "ray":
        if not is_bundle(Path(source)):
            raise UserError(f"engine ray is for a bundle that `exitwise export` wrote; got {source}")
        with needing_extras("predicting on Ray"):
            from exitwise.workflows.predict_on_ray import predict_on_ray

        return predict_on_ray(output, source, files, fields, device, top, strict, overwrite)
    noun = classifies(Path(source))
    images = listed_texts(files) if noun == "texts" else listed(files)
    classifier = open_classifier(Path(source), device, threads, len(images), top, calibration)
    told = progress or (lambda done, total: None)
    tally = Tally()
    if str(output) == "-":
        write_csv(sys.stdout, fields, ())
        for chunk in _answers(classifier, images, top, strict):
            rows = [each.row() for each in chunk]
            write_csv(sys.stdout, fields, rows, header=False)
            sys.stdout.flush()
            told(*(tally.add(rows), len(images)))
        _check_any(images, tally.answered, tally.broken, noun)
        return Written(None, tally, noun)
    of = {"answers": classifier.digest, "files": _digest_of(images), "top": top}
    with GrowingTable(Path(output), fields, of, overwrite) as table:
        for row in table.rows():
            tally.add([row])
        for chunk in _answers(classifier, images[table.there :], top, strict):
            rows = [each.row() for each in chunk]
            table.add(rows)
            told(*(tally.add(rows), len(images)))
        if images and not tally.answered:
            table.forget()
        _check_any(images, tally.answered, tally.broken, noun)
        table.finish()
    return Written(Path(output), tally, noun)


def _answers(
    classifier: Classifier, images: Sequence[Listed], top: int, strict: bool
) -> Iterator[list[Prediction | Broken]]:
    """Yield the answers to all images, in order, some at a time."""
    chunk: list[tuple[str, Any]] = []
    for item in _read_ahead(classifier.read, images):
        chunk.append(item)
        if len(chunk) == BATCH:
            yield _answered(classifier, chunk, top, strict)
            chunk = []
    if chunk:
        yield _answered(classifier, chunk, top, strict)


def _read_ahead(read: Callable[[ImageLike], Any], images: Sequence[Listed]) -> Iterator[tuple[str, Any]]:
    """Yield names with inputs, or what is wrong with an image, in order; a batch of them is read meanwhile."""

    def of(each: Listed) -> tuple[str, Any]:
        try:
            return each.name, read(each.content())
        except BrokenImageError as error:
            return each.name, error

    waiting: deque[Future[list[tuple[str, Any]]]] = deque()
    with ThreadPoolExecutor(allowed_cores()) as pool:
        try:
            for start in range(0, len(images), AT_ONCE):
                waiting.append(pool.submit(lambda some: [of(each) for each in some], images[start : start + AT_ONCE]))
                if len(waiting) > BATCH // AT_ONCE:
                    yield from waiting.popleft().result()
            for future in waiting:
                yield from future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _answered(
    classifier: Classifier, chunk: Sequence[tuple[str, Any]], top: int, strict: bool
) -> list[Prediction | Broken]:
    wrong = [each for _, each in chunk if isinstance(each, BrokenImageError)]
    if wrong and strict:
        raise wrong[0]
    inputs = [each for _, each in chunk if not isinstance(each, BrokenImageError)]
    found: Iterator[tuple[Any, ...]] = iter(())
    if inputs:
        found = iter(fates_of(classifier.classify(inputs), classifier.classes, classifier.full_macs, top))
    return [
        Broken(name, each.reason) if isinstance(each, BrokenImageError) else Prediction(name, *next(found))
        for name, each in chunk
    ]


def _check_any(images: Sequence[Listed], answered: int, broken: Sequence[Broken], noun: Noun) -> None:
    """Raise UserError where all are broken."""
    if not answered and broken:
        first = broken[0]
        others = f", and the other {len(images) - 1} are broken too" if len(images) > 1 else ""
        expected = "a text at" if noun == "texts" else "an image in"
        raise UserError(f"expected {expected} {first.file}; could not read it: {first.reason}{others}")


def _digest_of(images: Sequence[Listed]) -> str:
    return hashlib.sha256("\n".join(each.name for each in images).encode(errors="surrogateescape")).hexdigest()
