"""Networks in the forms that they are deployed in, as functions to be timed."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from exitwise.benching.networks import Exported, Subject, right_early, rows_of
from exitwise.deploy.anew import calibrated_anew, standard_of
from exitwise.deploy.calibrating import Recorded
from exitwise.deploy.calibration import Calibration
from exitwise.deploy.onnx_runner import OnnxRunner
from exitwise.deploy.sessions import open_session
from exitwise.errors import UserError
from exitwise.evaluation.exported import arrays_of, as_arrays, logits_of
from exitwise.evaluation.outputs import collect_logits
from exitwise.exiting.fitting import fit_and_read
from exitwise.exiting.policy import MAX_PROBABILITY, ExitPolicy
from exitwise.exiting.rule import Thresholds
from exitwise.exiting.runner import EarlyExitRunner, compiled
from exitwise.exiting.table import budget_table, line_for
from exitwise.kernels.inputs import Inputs, has_tokens, moved, samples_in
from exitwise.kernels.timing import interleaved_seconds
from exitwise.models import count_cost
from exitwise.models.cost import count_alone
from exitwise.models.staged import Stage
from exitwise.runs.records.bench import FormName, Network, Row
from exitwise.training.compiled import check_compiler

FORMS: tuple[FormName, ...] = get_args(FormName)
PASSES = 3
"""Times that each batch is run, all forms in between: their median counts."""

MOST_BATCHES, FEWEST_BATCHES = 256, 4

Call = Callable[[Any], object]


class Ready(NamedTuple):
    """A network in a form.

    Attributes:
        call: what is timed, with a batch as the form takes it.
        correct: whether it is right on each test sample; None where unknown.
        macs: mean per test sample.
        weights: bytes of weights, or of the files that hold them.
    """

    call: Call
    correct: NDArray[np.bool_] | None
    macs: float | None
    weights: int


class Made(NamedTuple):
    """Networks in a form, and which are missing there, why."""

    ready: dict[Network, Ready]
    left_out: dict[str, str]


def in_form(form: FormName, subject: Subject | Exported, folder: Path) -> Made:
    """Return a subject's networks in a form: the full one, those that leave early, those cut at an exit.

    Args:
        form: which; a bundle is of the form ``onnx`` alone.
        subject: whose.
        folder: of this subject alone, for what is exported on the way; it may go once all forms are made.
    """
    if isinstance(subject, Exported):
        size = _bytes_in(subject.runner.folder)
        ready = Ready(subject.runner, subject.correct, subject.macs, size)
        return Made({subject.network: ready} if form == "onnx" else {}, {})
    make = {"onnx": _onnx, "int8": _int8, "compiled": _compiled, "eager": _eager}[form]
    return make(subject, folder)


def _eager(subject: Subject, folder: Path) -> Made:
    return _in_torch(subject, lambda call: call, compile=False)


def _compiled(subject: Subject, folder: Path) -> Made:
    check_compiler(next(subject.model.parameters()).device)
    return _in_torch(subject, compiled, compile=True)


def _in_torch(subject: Subject, wrapped: Callable[[Call], Call], *, compile: bool) -> Made:
    model = subject.model
    ready = {}
    for network, exit in subject.alone.items():
        stages = cast("list[Stage]", list(model.stages))
        parts = [*(stage.body for stage in stages[: exit + 1]), stages[exit].head]
        call = wrapped(partial(model.forward_only, exit=exit))
        ready[network] = Ready(call, subject.right_alone(exit), count_alone(model, exit), _bytes_of(parts))
    runner = (
        EarlyExitRunner(model, next(iter(subject.early.values())).policy, compile=compile) if subject.early else None
    )
    for network, (policy, _) in subject.early.items():
        assert runner is not None
        ready[network] = Ready(partial(_under, runner, policy), *subject.right_early(policy), _bytes_of([model]))
    return Made(ready, {})


def _under(runner: EarlyExitRunner, policy: ExitPolicy, inputs: Any) -> object:
    runner.policy = policy
    return runner(inputs)


def _onnx(subject: Subject, folder: Path) -> Made:
    ready = {}
    for network, exit in subject.alone.items():
        graph = _graph_of(subject, exit, folder)
        call = partial(_run_session, open_session(graph.read_bytes()))
        cost = count_alone(subject.model, exit)
        ready[network] = Ready(call, subject.right_alone(exit), cost, graph.stat().st_size)
    if subject.early:
        bundle = bundle_of(subject, folder)
        runner = OnnxRunner(bundle)
        for network, (policy, _) in subject.early.items():
            call = partial(_within, runner, policy.thresholds)
            ready[network] = Ready(call, *subject.right_early(policy), _bytes_in(bundle))
    return Made(ready, {})


def _int8(subject: Subject, folder: Path) -> Made:
    """Ranges and thresholds are found on held-out samples; where no accuracy is known, ranges on what is timed."""
    from exitwise.deploy.formats.int8 import Int8, for_ranges, quantise_graph

    model, held_out, test = subject.model, subject.held_out, subject.test
    if held_out is None and subject.tested is not None:
        raise UserError("eight bits need the held-out samples, to find ranges and thresholds on; got none")
    how: Int8 = "dynamic" if has_tokens(model.example) else "static"

    def held() -> Iterator[tuple[Mapping[str, Any], Any]]:
        if held_out is not None:
            return arrays_of(model, held_out())
        return iter([(as_arrays(model, subject.inputs), None)])

    ready = {}
    for network, exit in subject.alone.items():
        graph = folder / f"exit_{exit}_int8.onnx"
        samples = list(for_ranges(inputs for inputs, _ in held())) if how == "static" else []
        quantise_graph(_graph_of(subject, exit, folder), graph, how, samples, network.name)
        session = open_session(graph.read_bytes())
        correct = None
        if test is not None and subject.tested is not None:
            answers = [
                session.run(None, dict(inputs))[0].argmax(-1) == targets for inputs, targets in arrays_of(model, test())
            ]
            correct = np.concatenate(answers)
        call = partial(_run_session, session)
        ready[network] = Ready(call, correct, count_alone(model, exit), graph.stat().st_size)
    if not subject.early:
        return Made(ready, {})
    early, left_out = _early_in_int8(subject, folder, how)
    return Made({**ready, **early}, left_out)


def _early_in_int8(subject: Subject, folder: Path, how: Any) -> Made:
    from exitwise.deploy.formats.int8 import Int8Bundle, for_ranges

    model, held_out, test = subject.model, subject.held_out, subject.test
    assert held_out is not None
    assert test is not None
    made = folder / "int8"
    made.mkdir()
    samples = for_ranges(inputs for inputs, _ in arrays_of(model, held_out()))
    runner = (eight := Int8Bundle(bundle_of(subject, folder), made, how, samples)).uncalibrated()
    logits, targets = logits_of(runner, arrays_of(model, held_out()))
    tested = logits_of(runner, arrays_of(model, test()))
    costs, left_out, ready = count_cost(model).macs, {}, {}
    anew: Calibration | None = None
    if subject.calibration is not None:
        try:
            float32, _ = collect_logits(model, held_out(), next(model.parameters()).device)
            held = Recorded.of_numbered_classes(logits, targets)
            standard = standard_of(subject.calibration, float32)
            anew = calibrated_anew(subject.calibration, held, standard, f"eight bits ({how})")
            runner = eight.write(anew)
        except UserError as error:
            left_out["early exits as calibrated, int8"] = str(error)
    former = subject.calibration.policy.measure if subject.calibration is not None else MAX_PROBABILITY
    fitted = fit_and_read(former.name, logits, targets, costs, temperature=former.temperatures is not None)
    right = fitted.predictions == targets[:, None]
    table = budget_table(
        fitted.confidences, right, costs, family=fitted.measure.family, full_macs=subject.model.full_macs
    )
    for network, (_, budget) in subject.early.items():
        if budget is not None:
            policy = ExitPolicy(line_for(table, budget).thresholds, fitted.measure)
        elif anew is not None:
            policy = anew.policy
        else:
            continue
        call = partial(_within, runner, policy.thresholds)
        ready[network] = Ready(call, *right_early(tested, policy, costs), _bytes_in(made))
    return Made(ready, left_out)


def bundle_of(subject: Subject, folder: Path) -> Path:
    """Return a bundle of the subject, written at the first call."""
    from exitwise.deploy.formats.onnx import export_onnx

    bundle = folder / "bundle"
    if not bundle.exists():
        model = copy.deepcopy(subject.model).cpu()
        calibration = Calibration.of(next(iter(subject.early.values())).policy, count_cost(model).macs)
        classes = [str(label) for label in range(model.num_classes)]
        export_onnx(model, calibration, bundle, classes=classes, preprocessing=None)
    return bundle


def _graph_of(subject: Subject, exit: int, folder: Path) -> Path:
    """Return an ONNX graph of an exit alone, written at the first call."""
    from exitwise.deploy.formats.onnx import onnx_of_exit

    graph = folder / f"exit_{exit}.onnx"
    if not graph.exists():
        graph.write_bytes(onnx_of_exit(copy.deepcopy(subject.model).cpu(), exit))
    return graph


def _bytes_of(parts: Sequence[nn.Module]) -> int:
    """Return how many bytes parameters and buffers take, those that are shared once."""
    tensors: list[Tensor] = [t for part in parts for t in (*part.parameters(), *part.buffers())]
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())


def _bytes_in(folder: Path) -> int:
    """Return the size of a bundle's stages and data, without the graph for single samples."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.name.startswith("stage_"))


def _within(runner: OnnxRunner, thresholds: Thresholds, inputs: Any) -> object:
    runner.thresholds = thresholds
    return runner(inputs)


def _run_session(session: Any, inputs: Any) -> object:
    named = inputs if isinstance(inputs, dict) else {session.get_inputs()[0].name: inputs}
    return session.run(None, named)


def batches_of(form: FormName, inputs: Inputs, batch_size: int, place: torch.device) -> list[Any]:
    """Return the samples in batches of a size, as a form takes them; what is left over is left out."""
    starts = range(0, samples_in(inputs) - batch_size + 1, batch_size)
    batches = [rows_of(inputs, slice(start, start + batch_size)) for start in starts]
    if form in ("onnx", "int8"):
        return [tree_map(lambda part: np.ascontiguousarray(part.cpu().numpy()), batch) for batch in batches]
    return [moved(batch, place) for batch in batches]


class Timing(NamedTuple):
    """Networks in a form, called with their next batch at each call, and how many batches make a pass."""

    calls: Mapping[Network, Callable[[], object]]
    batches: int


def prepared(calls: Mapping[Network, tuple[Call, Sequence[Any]]], seconds: float) -> Timing:
    """Return networks to be timed, each with batches of its own, the same samples in all.

    Args:
        calls: by network, what is timed and the batches that it takes.
        seconds: about how long all passes may take.
    """
    for call, batches in calls.values():
        call(batches[0])  # where something is compiled, it is now
    start = time.perf_counter()
    for call, batches in calls.values():
        call(batches[0])
    once = time.perf_counter() - start
    affordable = int(seconds / PASSES / max(once, 1e-9))
    count = min(max(affordable, FEWEST_BATCHES), MOST_BATCHES)
    functions = {}
    for network, (call, batches) in calls.items():
        some = [batches[i % len(batches)] for i in range(count)]
        functions[network] = partial(_next_of, call, cycle([some[-1], *some]))  # the first of a pass is not counted
    return Timing(functions, count)


def measure(forms: Mapping[FormName, Timing]) -> dict[tuple[Network, FormName], NDArray[np.float64]]:
    """Return seconds of each call, (passes, batches): forms in turn in a pass, networks in turn in a form."""
    found: dict[tuple[Network, FormName], list[list[float]]] = defaultdict(list)
    for _ in range(PASSES):
        for form, timing in forms.items():
            for network, seconds in interleaved_seconds(timing.calls, timing.batches).items():
                found[network, form].append(seconds)
    return {key: np.array(passes) for key, passes in found.items()}


def row_of(network: Network, form: FormName, size: int, ready: Ready, seconds: NDArray[np.float64]) -> Row:
    """Return what was measured of a network in a form as a row; what it saves and its gap are not known yet."""
    mean = float(np.median(seconds, axis=0).mean())
    p50, p95, p99 = np.percentile(seconds, [50, 95, 99]).tolist()
    accuracy = None if ready.correct is None else float(ready.correct.mean())
    return Row(network, form, size, mean, p50, p95, p99, accuracy, ready.macs, None, ready.weights)


def _next_of(call: Call, batches: Iterator[Any]) -> None:
    call(next(batches))
