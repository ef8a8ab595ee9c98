"""What early exits save on this machine, beside everything else that costs less: each network in every form, in turn.

Answers "is it worth it here?" from times, not from MACs.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from exitwise.benching.energy import Meter, joules_of
from exitwise.benching.forms import (
    FORMS,
    MOST_BATCHES,
    Ready,
    Timing,
    batches_of,
    bundle_of,
    in_form,
    measure,
    prepared,
    row_of,
)
from exitwise.benching.links import SAMPLES, links_of
from exitwise.benching.measured import Measured
from exitwise.benching.networks import (
    Exported,
    Subject,
    beside_network,
    beside_run,
    rows_of,
    subject_of_network,
    subject_of_run,
)
from exitwise.benching.verdict import doubts, tails, verdict
from exitwise.budgets import check_whole
from exitwise.data.loaders import pairs_of
from exitwise.deploy.calibration import Calibration
from exitwise.errors import UserError
from exitwise.exiting.outcome import TOLERANCE
from exitwise.kernels.inputs import Inputs
from exitwise.kernels.timing import warn_if_busy
from exitwise.models.staged import StagedModel
from exitwise.runs.build import pick_device
from exitwise.runs.folder import Run
from exitwise.runs.records.bench import BENCH, Bench, FormName, Link, Network, Row
from exitwise.shown import say
from exitwise.storage.files import store, warn_of
from exitwise.workflows.arguments import check_network_call, check_no_place, check_run_call

BUDGETS, BATCH_SIZES = (0.3, 0.5, 0.7), (1, 8, 64)


def bench(
    source: str | Path | StagedModel,
    calibration: Calibration | str | None = None,
    test: Iterable[Any] | None = None,
    *,
    held_out: Iterable[Any] | None = None,
    beside: str | Path | Sequence[str | Path] | Mapping[str, Any] = (),
    forms: str | Sequence[str] = FORMS,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    budgets: Sequence[float] = BUDGETS,
    seconds: float = 60.0,
    data: str | Path | None = None,
    device: str = "auto",
    tell: Callable[[str], object] = say,
) -> Bench:
    """Time a network on test samples: in full, leaving early, cut at each exit, and others beside it, in every form.

    What leaves early does so as it was calibrated, and at each budget of ``budgets`` by the same measure. Every row
    has its accuracy on the same samples; gaps to the full network are paired by sample. In eight bits (ONNX
    Runtime's, with static ranges; of networks that take tokens, dynamic ones) thresholds are found anew on the
    held-out samples, for the same wish. Energy is said where the machine counts it (RAPL). The verdict sets the
    calibrated policy against the fastest of all others that are accurate enough, what leaves early beside it
    included. What decides is the mean time over samples, each by its median.

    Args:
        source: a run folder, whose test images are used and whose bench.json is written; or a network.
        calibration: of a network; of a run the name of one that it keeps.
        test: of a network, batches that it has not seen, as (inputs, targets, ...) or mappings.
        held_out: of a network, the batches that it was calibrated on; without them nothing is timed in eight bits.
        beside: what else could be used. Beside a run: other runs with the same test images (a cascade is one),
            bundles, or names for :func:`create_model`, of which only the time is known. Beside a network: by name,
            networks with or without exits, pairs of a network and its calibration, or paths of bundles.
        forms: of the networks: ``eager``, ``compiled``, ``onnx``, ``int8``.
        batch_sizes: samples per call.
        budgets: shares of the full network's MACs; those out of reach are left out, and named.
        seconds: about how long to measure, compiling and exporting aside.
        data: of a run, and of those beside it: where their images lie now, if they have moved.
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
        check_no_place(data)
        check_network_call(source, calibration, test, "timed by bench(network, calibration, test)")
        assert isinstance(calibration, Calibration)
        assert test is not None
        subjects = _of_network(source, calibration, test, held_out, beside, budgets, samples)
        place = next(source.parameters()).device
    else:
        check_run_call(source, calibration, held_out if test is None else test)
        if isinstance(beside, Mapping):
            raise UserError("beside a run stand other runs, bundles, or models by name; got networks")
        assert not isinstance(calibration, Calibration)
        run, place = Run(source).under(calibration).at(data), pick_device(device)
        writable = warn_of(run.path)
        others = [beside_run(str(each), run, samples, place, data) for each in beside]
        subjects = [subject_of_run(run, budgets, samples, place), *others]
    if "onnx" not in known and any(isinstance(each, Exported) for each in subjects):
        raise UserError(f"a bundle is timed in the form onnx; got {', '.join(known)}")
    rows, measured, left_out, links = _rows(subjects, known, batch_sizes, seconds, place, tell)
    if not rows:
        raise UserError(f"none of the forms runs here: {'; '.join(left_out.values())}")
    subject = subjects[0]
    assert isinstance(subject, Subject)
    doubtful = doubts(rows, subject.alone)
    compared, verdicts = _compared(rows, measured), _verdicts(rows, measured, subject)
    result = Bench(compared, verdicts, {**subject.left_out, **left_out}, doubtful, links)
    if run is not None and writable:
        record = BENCH.called(run.name)
        if store(partial(record.write, run.path, result), run.path):
            return replace(result, stored=record.path(run.path))
    return result


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
) -> tuple[list[Row], Measured, dict[str, str], list[Link]]:
    """Return a row for each network, form and batch size, what they are compared by, what was left out, and the links
    for which a split pays."""
    made: dict[FormName, dict[Network, Ready]] = {form: {} for form in forms}
    inputs: dict[Network, Inputs] = {}
    rows: list[Row] = []
    times: dict[tuple[Network, FormName, int], NDArray[np.float64]] = {}
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        for form, (number, subject) in product(forms, enumerate(subjects)):
            folder = Path(temporary) / str(number)
            folder.mkdir(exist_ok=True)
            try:
                with torch.inference_mode(False):
                    ready, reasons = in_form(form, subject, folder)
            except UserError as error:
                left_out[form] = str(error)
                continue
            made[form] |= ready
            inputs |= dict.fromkeys(ready, subject.inputs)
            left_out |= reasons
        found = {form: networks for form, networks in made.items() if networks}
        meter = Meter()
        for size in batch_sizes:
            timings: dict[FormName, Timing] = {}
            for form, networks in found.items():
                first = form == "compiled" and size == batch_sizes[0]
                tell(f"{form}, batch {size}{' (torch.compile takes minutes)' if first else ''} ...")
                batches = {id(each): batches_of(form, each, size, place) for each in inputs.values()}
                calls = {network: (each.call, batches[id(inputs[network])]) for network, each in networks.items()}
                timings[form] = prepared(calls, seconds / len(forms) / len(batch_sizes))
            if len(timings) > 1:
                tell(f"batch {size} in each form, in turn ...")
            measured = measure(timings)
            energy = joules_of(
                {
                    (network, form): timing.calls[network]
                    for form, timing in timings.items()
                    for network in timing.calls
                },
                meter,
            )
            for (network, form), values in measured.items():
                times[network, form, size] = values
                row = row_of(network, form, size, made[form][network], values)
                rows.append(replace(row, joules=energy.get((network, form))))
        links = _links(subjects[0], Path(temporary) / "0") if "onnx" in found else []
    correct = {(network, form): each.correct for form in made for network, each in made[form].items()}
    order = ("full", "early", "static")
    return sorted(rows, key=lambda row: order.index(row.network.kind)), Measured(correct, times), left_out, links


def _links(subject: Subject | Exported, folder: Path) -> list[Link]:
    """Return for which links a split of a network's bundle pays, as its policy lets test samples leave."""
    assert isinstance(subject, Subject)
    assert subject.tested is not None
    policy = next(iter(subject.early.values())).policy
    exits = policy.exit_of(policy.measure.read_all(subject.tested[0])[0])
    samples = batches_of("onnx", rows_of(subject.inputs, slice(0, SAMPLES)), 1, torch.device("cpu"))
    return links_of(bundle_of(subject, folder), samples, exits)


def _compared(rows: Sequence[Row], measured: Measured) -> list[Row]:
    """Return the rows with their gaps to the full network in float32, and what they save beside it in their form."""
    full = [row for row in rows if row.network.kind == "full"]
    reference = next((row for row in full if row.form != "int8"), full[0])
    there = {(row.form, row.batch_size): row for row in full}
    return [
        replace(row, gap=measured.gap(row, reference), saved=measured.saved(row, there.get((row.form, row.batch_size))))
        for row in rows
    ]


def _verdicts(rows: Sequence[Row], measured: Measured, subject: Subject) -> dict[int, str]:
    """Return a verdict for each batch size on what counts: the calibrated policy or, without one, the middle budget."""
    judged, *aside = subject.early
    counted = [row for row in rows if row.network not in aside]
    allowed = TOLERANCE if subject.calibration is None else subject.calibration.tolerance
    found = {}
    for size in {row.batch_size: None for row in rows}:
        mine = [row for row in counted if row.batch_size == size]
        worse = tails(mine, judged)
        found[size] = verdict(mine, judged, measured, allowed) + (f"; {worse}" if worse else "")
    return found
