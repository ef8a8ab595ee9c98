"""What early exits save on this machine: a run's network in full, leaving early, and cut at one exit, timed in turn.

Answers "is it worth it here?" from times, not from MACs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from exitwise.benching.forms import FORMS, MOST_BATCHES, batches_of, in_form, measure
from exitwise.benching.networks import Subject, other_network, subject_of_network, subject_of_run
from exitwise.benching.timing import warn_if_busy
from exitwise.benching.verdict import verdict
from exitwise.data.loaders import pairs_of
from exitwise.deploy.calibration import Calibration
from exitwise.errors import UserError
from exitwise.models.staged import StagedModel
from exitwise.runs.build import pick_device
from exitwise.runs.folder import Run
from exitwise.runs.records.bench import BENCH, Bench, FormName, Row
from exitwise.shown import say
from exitwise.workflows.arguments import check_network_call, check_run_call

BUDGETS, BATCH_SIZES = (0.3, 0.5, 0.7), (1, 8, 64)


def bench(
    source: str | Path | StagedModel,
    calibration: Calibration | None = None,
    test: Iterable[Any] | None = None,
    *,
    forms: str | Sequence[str] = FORMS,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    budgets: Sequence[float] = BUDGETS,
    static: str | Sequence[str] = (),
    seconds: float = 60.0,
    device: str = "auto",
    tell: Callable[[str], object] = say,
) -> Bench:
    """Time a network on test samples: in full, leaving early, and cut at each exit, each in every form.

    What leaves early does so as it was calibrated, and at each budget of ``budgets`` by the same measure.

    Args:
        source: a run folder, whose test images are used and whose bench.json is written; or a network.
        calibration: of a network.
        test: of a network, batches that it has not seen, as (inputs, targets, ...) or mappings.
        forms: of the network.
        batch_sizes: samples per call.
        budgets: shares of the full network's MACs; those out of reach are left out.
        static: further networks to compare with: run folders, or names for :func:`create_model`, of which only the
            time is known.
        seconds: about how long to measure, compiling and exporting aside.
        device: where to time a run's network; a network itself is timed where it lies. ONNX runs on the CPU.
        tell: is told what is done next; by default it is printed on standard error.

    Raises:
        UserError: for unknown forms, a batch size below 1, budgets out of reach, an unknown static network, or a
            network without calibration or test samples.
    """
    forms, static = ([each] if isinstance(each, str) else each for each in (forms, static))
    known: list[FormName] = [form for form in FORMS if form in forms]
    unknown = [form for form in forms if form not in FORMS]
    if unknown or not known:
        raise UserError(f"expected forms among {', '.join(FORMS)}; got {', '.join(unknown) or 'none'}")
    if not 0 < seconds < math.inf:
        raise UserError(f"expected a positive number of seconds; got {seconds:g}")
    if not batch_sizes or min(batch_sizes) < 1:
        raise UserError(f"expected batch sizes of at least 1; got {list(batch_sizes)}")
    samples = max(*batch_sizes, MOST_BATCHES)
    run: Run | None = None
    if isinstance(source, nn.Module):
        check_network_call(source, calibration, test, "timed by bench(network, calibration, test)")
        assert calibration is not None
        assert test is not None
        place, classes = next(source.parameters()).device, [str(label) for label in range(source.num_classes)]
        batches = pairs_of(test, source, "test loader")
        prepare = partial(subject_of_network, source, calibration, batches, budgets, samples)
    else:
        check_run_call(source, calibration, test)
        run = Run(source)
        place, classes = pick_device(device), run.classes
        prepare = partial(subject_of_run, run, budgets, samples, place)
    warn_if_busy()
    others = dict(other_network(name, classes, place) for name in static)
    subject: Subject = prepare()
    rows: list[Row] = []
    left_out: dict[str, str] = {}
    per_form = seconds / len(known) / len(batch_sizes)
    for form in known:
        try:
            with in_form(form, subject) as calls:
                calls = {**calls, **(others if form == "eager" else {})}
                for batch_size in batch_sizes:
                    first = form == "compiled" and batch_size == batch_sizes[0]
                    tell(f"{form}, batch {batch_size}{' (torch.compile takes minutes)' if first else ''} ...")
                    sized = batches_of(form, subject.inputs, batch_size, place)
                    rows += measure(form, calls, sized, batch_size, per_form)
        except UserError as error:
            left_out[form] = str(error)
    if not rows:
        raise UserError(f"none of the forms runs here: {'; '.join(left_out.values())}")
    result = Bench(rows, _verdicts(rows, subject), left_out)
    if run is not None:
        BENCH.write(run.path, result)
    return result


def _verdicts(rows: Sequence[Row], subject: Subject) -> dict[int, str]:
    """Return a verdict for each batch size on what counts: the calibrated policy or, without one, the middle budget."""
    aside = set(list(subject.early)[1:])
    counted = [row for row in rows if row.network not in aside]
    return {
        size: verdict([row for row in counted if row.batch_size == size]) for size in {r.batch_size: None for r in rows}
    }
