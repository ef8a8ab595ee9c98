"""What early exits save on this machine: a run's network in full, leaving early, and cut at one exit, timed in turn.

Answers "is it worth it here?" from times, not from MACs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from exitwise.benching.forms import FORMS, MOST_BATCHES, batches_of, in_form, measure, test_images
from exitwise.benching.networks import networks_of, other_network
from exitwise.benching.timing import warn_if_busy
from exitwise.benching.verdict import verdict
from exitwise.errors import UserError
from exitwise.runs.build import pick_device
from exitwise.runs.folder import Run
from exitwise.runs.records.bench import BENCH, Bench, FormName, Row

BUDGETS, BATCH_SIZES = (0.3, 0.5, 0.7), (1, 8, 64)


def bench(
    path: str | Path,
    *,
    forms: str | Sequence[str] = FORMS,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    budgets: Sequence[float] = BUDGETS,
    static: str | Sequence[str] = (),
    seconds: float = 60.0,
    device: str = "auto",
    tell: Callable[[str], object] = lambda message: None,
) -> Bench:
    """Time a run's network on its test images and record the result in bench.json.

    Compared are the full network without its early exits, the early-exit runner at each budget (the compiled and the
    ONNX form at the middle one), and as static network the first exit that alone is as accurate on the calibration
    images as leaving early at the middle budget.

    Args:
        path: the run folder.
        forms: of the network.
        batch_sizes: images per call.
        budgets: shares of the full network's MACs, ascending; those below the first exit's are left out.
        static: further networks to compare with: run folders, or names for :func:`create_model`, of which only the
            time is known.
        seconds: about how long to measure, compiling and exporting aside.
        device: where; ONNX runs on the CPU.
        tell: is told what is done next.

    Raises:
        UserError: for unknown forms, a batch size below 1, budgets out of reach, or an unknown static network.
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
    run, place = Run(path), pick_device(device)
    warn_if_busy()
    others = {name: other_network(name, run, place) for name in static}
    model, splits = run.model(place), run.splits()
    networks, policies, cut = networks_of(model, splits, budgets, place, run.settings.workers)
    images = test_images(splits, max(*batch_sizes, MOST_BATCHES))
    rows: list[Row] = []
    left_out: dict[str, str] = {}
    per_form = seconds / len(known) / len(batch_sizes)
    for form in known:
        tell(f"{form} ..." if form != "compiled" else "compiled (torch.compile takes minutes) ...")
        try:
            with in_form(form, run, model, networks, policies, cut, place) as calls:
                if form == "eager":
                    calls = {**calls, **dict(others.values())}
                for batch_size in batch_sizes:
                    rows += measure(form, calls, batches_of(form, images, batch_size, place), batch_size, per_form)
        except UserError as error:
            left_out[form] = str(error)
    if not rows:
        raise UserError(f"none of the forms runs here: {'; '.join(left_out.values())}")
    verdicts = {batch_size: verdict([r for r in rows if r.batch_size == batch_size]) for batch_size in batch_sizes}
    result = Bench(rows, verdicts, left_out)
    BENCH.write(run.path, result)
    return result
