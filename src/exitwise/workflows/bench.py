"""What early exits save on this machine, beside everything else that costs less: each network in every form, in turn.

Answers "is it worth it here?" from times, not from MACs.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from exitwise.benching.forms import FORMS, MOST_BATCHES, Ready, batches_of, in_form, measure, rows_in
from exitwise.benching.networks import (
    Exported,
    Subject,
    beside_network,
    beside_run,
    subject_of_network,
    subject_of_run,
)
from exitwise.benching.timing import warn_if_busy
from exitwise.benching.verdict import ALLOWED, verdict
from exitwise.budgets import check_whole
from exitwise.data.loaders import pairs_of
from exitwise.deploy.calibration import Calibration
from exitwise.errors import UserError
from exitwise.evaluation.outputs import mean_and_half_width
from exitwise.models.staged import StagedModel
from exitwise.runs.build import pick_device
from exitwise.runs.folder import Run
from exitwise.runs.records.bench import BENCH, Bench, FormName, Gap, Row
from exitwise.shown import say
from exitwise.workflows.arguments import check_network_call, check_run_call

BUDGETS, BATCH_SIZES = (0.3, 0.5, 0.7), (1, 8, 64)


def bench(
    source: str | Path | StagedModel,
    calibration: Calibration | None = None,
    test: Iterable[Any] | None = None,
    *,
    held_out: Iterable[Any] | None = None,
    beside: str | Path | Sequence[str | Path] | Mapping[str, Any] = (),
    forms: str | Sequence[str] = FORMS,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    budgets: Sequence[float] = BUDGETS,
    seconds: float = 60.0,
    device: str = "auto",
    tell: Callable[[str], object] = say,
) -> Bench:
    """Time a network on test samples: in full, leaving early, cut at each exit, and others beside it, in every form.

    What leaves early does so as it was calibrated, and at each budget of ``budgets`` by the same measure. Every row has
    its accuracy on the same samples; gaps to the network in full are paired by sample. In eight bits (ONNX Runtime's,
    with static ranges; of networks that take tokens, dynamic ones) thresholds are found anew on the held-out samples,
    for the same wish. The verdict sets the calibrated policy against the fastest of all others that are accurate
    enough, what leaves early beside it included. What decides is the mean time over samples, each by its median.

    Args:
        source: a run folder, whose test images are used and whose bench.json is written; or a network.
        calibration: of a network.
        test: of a network, batches that it has not seen, as (inputs, targets, ...) or mappings.
        held_out: of a network, the batches that it was calibrated on; without them nothing is timed in eight bits.
        beside: what else could be used. Beside a run: other runs with the same test images (a cascade is one),
            bundles, or names for :func:`create_model`, of which only the time is known. Beside a network: by name,
            networks with or without exits, pairs of a network and its calibration, or paths of bundles.
        forms: of the networks: ``eager``, ``compiled``, ``onnx``, ``int8``.
        batch_sizes: samples per call.
        budgets: shares of the full network's MACs; those out of reach are left out.
        seconds: about how long to measure, compiling and exporting aside.
        device: where to time a run's network; a network itself is timed where it lies. ONNX runs on the CPU.
        tell: is told what is done next; by default it is printed on standard error.

    Raises:
        UserError: for unknown forms, a batch size below 1, budgets out of reach, something beside that cannot be
            compared, or a network without calibration or test samples.
    """
    forms = [forms] if isinstance(forms, str) else forms
    beside = [beside] if isinstance(beside, (str, Path)) else beside
    known: list[FormName] = [form for form in FORMS if form in forms]
    unknown = [form for form in forms if form not in FORMS]
    if unknown or not known:
        raise UserError(f"expected forms among {', '.join(FORMS)}; got {', '.join(unknown) or 'none'}")
    if not 0 < seconds < math.inf:
        raise UserError(f"expected a positive number of seconds; got {seconds:g}")
    if not batch_sizes:
        raise UserError("expected batch sizes of at least 1; got none")
    batch_sizes = [check_whole("a batch size", size, 1) for size in batch_sizes]
    warn_if_busy()
    samples = max(*batch_sizes, MOST_BATCHES)
    run: Run | None = None
    if isinstance(source, nn.Module):
        check_network_call(source, calibration, test, "timed by bench(network, calibration, test)")
        assert calibration is not None
        assert test is not None
        subjects = _of_network(source, calibration, test, held_out, beside, budgets, samples)
        place = next(source.parameters()).device
    else:
        check_run_call(source, calibration, held_out if test is None else test)
        if isinstance(beside, Mapping):
            raise UserError("beside a run stand other runs, bundles, or models by name; got networks")
        run, place = Run(source), pick_device(device)
        others = [beside_run(str(each), run, samples, place) for each in beside]
        subjects = [subject_of_run(run, budgets, samples, place), *others]
    if "onnx" not in known and any(isinstance(each, Exported) for each in subjects):
        raise UserError(f"a bundle is timed in the form onnx; got {', '.join(known)}")
    rows, correct, left_out = _rows(subjects, known, batch_sizes, seconds, place, tell)
    if not rows:
        raise UserError(f"none of the forms runs here: {'; '.join(left_out.values())}")
    result = Bench(_with_gaps(rows, correct), _verdicts(rows, correct, subjects[0]), left_out)
    if run is not None:
        BENCH.write(run.path, result)
    return result


Correct = dict[tuple[Any, FormName], NDArray[np.bool_] | None]


def _of_network(
    model: StagedModel,
    calibration: Calibration,
    test: Iterable[Any],
    held_out: Iterable[Any] | None,
    beside: Sequence[str | Path] | Mapping[str, Any],
    budgets: Sequence[float],
    samples: int,
) -> list[Subject | Exported]:
    if not isinstance(beside, Mapping):
        if not all(isinstance(each, (str, Path)) for each in beside):
            raise UserError('expected networks beside this one by name, such as {"smaller": network}; got a list')
        beside = {str(each): each for each in beside}
    held = None if held_out is None else (lambda: pairs_of(held_out, model, "held-out loader"))
    subject = subject_of_network(
        model, calibration, lambda: pairs_of(test, model, "test loader"), held, budgets, samples
    )
    classes = model.num_classes
    return [subject, *(beside_network(name, each, subject, classes, samples) for name, each in beside.items())]


def _rows(
    subjects: Sequence[Subject | Exported],
    forms: Sequence[FormName],
    batch_sizes: Sequence[int],
    seconds: float,
    place: torch.device,
    tell: Callable[[str], object],
) -> tuple[list[Row], Correct, dict[str, str]]:
    """Return a row for each network, form and batch size, which samples each is right on, and what was left out."""
    rows: list[Row] = []
    correct: Correct = {}
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / str(number) for number in range(len(subjects))]
        for form in forms:
            made: dict[Any, Ready] = {}
            calls: dict[int, dict[Any, Any]] = {size: {} for size in batch_sizes}
            for subject, folder in zip(subjects, folders, strict=True):
                folder.mkdir(exist_ok=True)
                try:
                    ready, reasons = in_form(form, subject, folder)
                except UserError as error:
                    left_out[form] = str(error)
                    continue
                made, left_out = {**made, **ready}, {**left_out, **reasons}
                for size in batch_sizes:
                    batches = batches_of(form, subject.inputs, size, place)
                    calls[size] |= {network: (each.call, batches) for network, each in ready.items()}
            correct |= {(network, form): each.correct for network, each in made.items()}
            for size in batch_sizes if made else ():
                first = form == "compiled" and size == batch_sizes[0]
                tell(f"{form}, batch {size}{' (torch.compile takes minutes)' if first else ''} ...")
                with torch.inference_mode():
                    timed = measure(calls[size], seconds / len(forms) / len(batch_sizes))
                rows += rows_in(form, made, timed, size)
    order = ("full", "early", "static")
    return sorted(rows, key=lambda row: order.index(row.network.kind)), correct, left_out


def _gap(row: Row, other: Row, correct: Correct) -> Gap | None:
    """Return how much more accurate the first is, paired by sample; None where unknown."""
    one, two = (correct[each.network, each.form] for each in (row, other))
    if one is None or two is None:
        return None
    differences = one.astype(float) - two.astype(float)
    mean, half = mean_and_half_width(differences)
    return Gap(float(mean), 0.0 if half is None else float(half))


def _with_gaps(rows: Sequence[Row], correct: Correct) -> list[Row]:
    """Return the rows with their gaps to the network in full, in float32."""
    full = [row for row in rows if row.network.kind == "full"]
    reference = next((row for row in full if row.form != "int8"), full[0])
    return [replace(row, gap=_gap(row, reference, correct)) for row in rows]


def _verdicts(rows: Sequence[Row], correct: Correct, subject: Subject | Exported) -> dict[int, str]:
    """Return a verdict for each batch size on what counts: the calibrated policy or, without one, the middle budget."""
    assert isinstance(subject, Subject)
    judged, *aside = subject.early
    counted = [row for row in rows if row.network not in aside]
    wish = {} if subject.calibration is None else subject.calibration.budget
    allowed = wish.get("max_accuracy_drop", ALLOWED)

    def compare(one: Row, other: Row) -> Gap:
        return _gap(one, other, correct) or Gap(math.nan, math.nan)

    return {
        size: verdict([row for row in counted if row.batch_size == size], judged, compare, allowed)
        for size in {row.batch_size: None for row in rows}
    }
