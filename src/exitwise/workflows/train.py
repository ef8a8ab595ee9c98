"""Train, calibrate, evaluate and predict on a run folder: what the commands do, callable from Python.

Each function returns its results; printing them is the command line's business.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from exitwise.catalogue.formats import FORMATS
from exitwise.catalogue.lookup import find
from exitwise.data import Split, Splits, TrainingBatches
from exitwise.data.ledger import Skipped
from exitwise.data.sampling import derive_seed
from exitwise.data.sources import read_image
from exitwise.deploy.monitor import Monitor
from exitwise.deploy.onnx_runner import Prediction
from exitwise.errors import UserError
from exitwise.evaluation.outputs import (
    EVALUATION_BATCH,
    CurvePoint,
    OperatingPoint,
    Outputs,
    anytime,
    budgeted_curve,
    collect_logits,
    collect_outputs,
    operate,
)
from exitwise.exiting.policy import ExitPolicy
from exitwise.exiting.runner import EarlyExitRunner
from exitwise.methods import BackboneFirst, Method, build_method
from exitwise.models import check_model_name, count_cost
from exitwise.models.staged import Stage, StagedModel
from exitwise.processes.distributed import first, joined, launched, own_device
from exitwise.processes.ranks import Ranks
from exitwise.report.figures import accuracy_against_macs
from exitwise.runs.folder import (
    Resume,
    Run,
    build_model,
    check_vacant,
    load_splits,
    pick_device,
    preprocessing_of,
)
from exitwise.settings.schema import Settings
from exitwise.storage.files import expand, read_json, write_json
from exitwise.storage.lock import check_unlocked, locked
from exitwise.training.checkpoint_folder import CheckpointFolder
from exitwise.training.compiled import check_compiler, compile_network
from exitwise.training.trainer import Reporter, Trainer
from exitwise.workflows.calibrate import calibrate as calibrate


class TrainingResult(NamedTuple):
    """A finished training: its folder, its rows of metrics, whether it continued an earlier one, and its data."""

    run: Run
    history: list[dict[str, float]]
    resumed: bool
    splits: Splits


@dataclass(frozen=True)
class Evaluation:
    """Test results of a run.

    Attributes:
        exit_macs: cost of leaving at each exit.
        anytime: accuracy of each exit on all test images.
        curve: one point per budget parameter p, calibrated on the calibration split.
        calibrated: what the run's own calibration does on the test split; None without one.
        images: number of test images that all this is measured on.
        left_out: number of test images that turned out broken.
    """

    exit_macs: tuple[int, ...]
    anytime: list[float]
    curve: list[CurvePoint]
    calibrated: OperatingPoint | None
    images: int
    left_out: int


def train(
    settings: Settings,
    out: str | Path,
    reporter: Reporter | None = None,
    *,
    splits: Splits | None = None,
    resume: Resume = "auto",
) -> TrainingResult:
    """Train as the settings say, into a run folder; continues what an earlier call with the same settings began.

    Processes that ``torchrun`` has started train together; the first of them writes.

    Args:
        settings: what to train on what, and how.
        out: the run folder.
        reporter: who watches.
        splits: the data that the settings name, where it is loaded already.
        resume: ``auto``: continue the run that is there, if any; ``never``: refuse to.

    Raises:
        ValueError: for unsuitable settings or data, or a folder that holds something else or that another process
            trains in; nothing is written then.
        Interrupted: after SIGTERM or SIGINT, with all steps saved.
        OSError: if a checkpoint cannot be written; those before it are kept.
    """
    out = Path(out)
    check_model_name(settings.model)
    device = own_device(pick_device(settings.device))
    if settings.precision == "tf32" and device.type != "cuda":
        raise UserError(f"precision tf32 is a GPU's; got device {device.type} (float32 and bf16 run everywhere)")
    if settings.compile:
        check_compiler(device)
    settings.options.check(settings.surroundings(processes=launched()[1]))
    with joined(device, settings.process_timeout, together=settings.allocation == "global") as ranks:
        _check_same(settings, ranks)
        with first(ranks):
            if ranks.rank == 0:
                check_vacant(out, settings, resume)
                check_unlocked(out)
            splits = splits or load_splits(settings, max_broken=settings.max_broken)
        return _train(settings, out, reporter, splits, resume, device, ranks)


def _train(
    settings: Settings,
    out: Path,
    reporter: Reporter | None,
    splits: Splits,
    resume: Resume,
    device: torch.device,
    ranks: Ranks,
) -> TrainingResult:
    torch.manual_seed(settings.seed)
    with first(ranks):
        model = build_model(settings, len(splits.classes), pretrained=True).to(device)
    if settings.compile:
        compile_network(model)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings.precision == "tf32"
    batches = TrainingBatches(
        splits.train, settings.batch_size, settings.seed, device, settings.workers, ranks.rank, ranks.size
    )
    method: Method = build_method(settings.method, settings.options, model.exits, fused=device.type == "cuda")
    if settings.backbone_epochs is not None:
        method = BackboneFirst(method, 2 * settings.backbone_epochs * batches.sampler.batches_per_epoch)
    method = method.to(device)
    learned = method.optimizer.param_groups if method.optimizer else []
    ranks.follow([*model.state_dict().values(), *(param for group in learned for param in group["params"])])
    if ranks.rank > 0:
        torch.manual_seed(derive_seed(settings.seed, ranks.rank))  # dropout of its own
    with locked(out) if ranks.rank == 0 else nullcontext():
        with first(ranks):
            run = Run.create(out, settings, splits, sys.argv, resume) if ranks.rank == 0 else Run(out)
        if ranks.rank == 0:
            run.follow(splits.ledger)

        def evaluate() -> list[float]:
            outputs = collect_together(model, splits.calibration, device, settings.workers, ranks)
            splits.ledger.skip(_of_all(splits.ledger.skipped.values(), ranks))
            return anytime(outputs)

        trainer = Trainer(
            model,
            build_optimizer(settings, model),
            method,
            batches,
            evaluate,
            epochs=settings.epochs,
            max_iterations=settings.max_iterations,
            label_smoothing=settings.label_smoothing,
            checkpoints=CheckpointFolder(run.checkpoints.root, settings.keep_checkpoints),
            checkpoint_every=settings.checkpoint_every,
            reporter=_MetricsWriter(run, reporter) if ranks.rank == 0 else None,
            channels_last=settings.channels_last,
            bf16=settings.precision == "bf16",
            ranks=ranks,
            sync_batchnorm=settings.sync_batchnorm,
            accumulate=settings.accumulate,
        )
        resumed = trainer.resume()
        history = trainer.fit()
        if ranks.rank == 0:
            run.write_metrics(history)  # also where a former call was killed between its last checkpoint and this
            run.write_weights(trainer.samples.rows())
    return TrainingResult(run, history, resumed, splits)


def _check_same(settings: Settings, ranks: Ranks) -> None:
    """Raise UserError unless all processes have the settings of the first, but for those of their machine."""
    ours = settings.model_dump(mode="json", exclude={"data_root", "workers"})
    for rank, theirs in enumerate(_told(ours, ranks)):
        other = [f"{key} {ours[key]!r} and {value!r}" for key, value in theirs.items() if value != ours[key]]
        if other:
            raise UserError(f"expected the same settings in all processes; got {', '.join(other)} (rank {rank})")


def _of_all(skipped: Iterable[Skipped], ranks: Ranks) -> list[Skipped]:
    """The images that any of the processes has skipped."""
    return [Skipped(*each) for theirs in _told(list(skipped), ranks) for each in theirs]


def _told(content: Any, ranks: Ranks) -> list[Any]:
    """What each process says, in plain values, in the order of ranks."""
    line = json.dumps(content) + "\n"
    everyone, _ = ranks.gather(torch.tensor(list(line.encode()), dtype=torch.uint8))
    return [json.loads(each) for each in bytes(everyone.tolist()).splitlines()]


def build_optimizer(settings: Settings, model: StagedModel) -> torch.optim.Optimizer:
    """The network's optimizer that the settings name, over what is to be trained."""
    groups = _parameter_groups(settings, model)
    fused = next(model.parameters()).is_cuda  # so that a step is skipped without waiting for the GPU
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay, fused=fused)
    return torch.optim.SGD(
        groups,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        fused=fused,
    )


def _parameter_groups(settings: Settings, model: StagedModel) -> list[dict[str, Any]]:
    """All parameters in one group, or those of the exits apart, where their learning rates differ."""
    trained = [param for param in model.parameters() if param.requires_grad]
    if settings.backbone_lr_factor == settings.head_lr_factor:
        return [{"params": trained, "lr": settings.lr * settings.head_lr_factor}]
    heads = {id(param) for stage in model.stages for param in cast("Stage", stage).head.parameters()}
    parts = (
        ([param for param in trained if id(param) not in heads], settings.backbone_lr_factor),
        ([param for param in trained if id(param) in heads], settings.head_lr_factor),
    )
    return [{"params": params, "lr": settings.lr * factor} for params, factor in parts if params]


def collect(model: StagedModel, split: Split, device: torch.device, workers: int = 0) -> Outputs:
    """Outputs of all exits on a split."""
    return collect_outputs(model, split.batches(EVALUATION_BATCH, workers), device)


def collect_together(model: StagedModel, split: Split, device: torch.device, workers: int, ranks: Ranks) -> Outputs:
    """:func:`collect`, each process taking its share of the images; all get all outputs, in order, none twice."""
    if len(split) < ranks.size:
        return collect(model, split, device, workers)
    share = collect(model, split.share(ranks.rank, ranks.size), device, workers)
    return Outputs(*(ranks.gather(tensor)[0] for tensor in share))


def evaluate(path: str | Path, device: str = "auto", *, splits: Splits | None = None) -> Evaluation:
    """Read the test split, once, and record anytime and budgeted results in evaluation.json and a figure.

    ``splits`` is the run's data, where it is loaded already.
    """
    run = Run(path)
    place = pick_device(device)
    model = run.model(place)
    splits = splits or run.splits()
    costs = count_cost(model).macs
    workers = run.settings.workers
    logits, targets = collect_logits(model, splits.test.batches(EVALUATION_BATCH, workers), place)
    test = Outputs.from_logits(logits, targets)
    curve = budgeted_curve(collect(model, splits.calibration, place, workers), test, costs)
    calibrated = None
    if (run.path / "calibration.json").is_file():
        policy = run.read_calibration().policy
        calibrated = operate(Outputs.from_logits(logits, targets, policy.confidence), policy, costs)
    left_out = len(splits.test) - len(targets)
    evaluation = Evaluation(costs, anytime(test), curve, calibrated, len(targets), left_out)
    write_json(run.path / "evaluation.json", {"checkpoint": run.best().name, **_record(evaluation)})
    figure = accuracy_against_macs({run.settings.method: [(curve, evaluation.anytime)]}, costs)
    (run.path / "figures").mkdir(exist_ok=True)
    figure.savefig(run.path / "figures" / "accuracy_against_macs.png", dpi=150)
    return evaluation


def predict(path: str | Path, files: Iterable[str | Path], device: str = "auto") -> list[Prediction]:
    """Classify images with the calibrated early-exit runner.

    Args:
        path: a calibrated run folder.
        files: images, or folders of images.
        device: where to run the network.

    Raises:
        ValueError: without calibration or images, or for a broken image.
    """
    run = Run(path)
    calibration = run.read_calibration()
    images = expand(files)
    preprocessing = preprocessing_of(run.settings)
    transform = preprocessing.for_evaluation()
    place = pick_device(device)
    monitor = Monitor.of_all(calibration.policy.exits, calibration.reference, len(images))
    runner = EarlyExitRunner(run.model(place), calibration.policy, calibration.exit_macs, monitor=monitor)
    full = runner.exit_macs[-1]
    predictions = []
    for start in range(0, len(images), EVALUATION_BATCH):
        chunk = images[start : start + EVALUATION_BATCH]
        batch = torch.stack([transform(read_image(image, preprocessing.channels)) for image in chunk])
        result = runner(batch.to(place))
        columns = (result.prediction, result.confidence, result.exit, result.macs / full)
        rows = zip(chunk, *(column.tolist() for column in columns), strict=True)
        predictions += [
            Prediction(str(file), run.classes[label], confidence, exit + 1, share)
            for file, label, confidence, exit, share in rows
        ]
    return predictions


def export(path: str | Path, out: str | Path, format: str = "onnx", *, overwrite: bool = False) -> list[Path]:
    """Write a calibrated run for other runtimes; returns the files.

    ``onnx``: see :func:`~exitwise.deploy.formats.onnx.export_onnx`; ``pt2``:
    :func:`~exitwise.deploy.formats.pt2.export_programs`.

    Raises:
        UserError: without calibration, if something is at ``out`` (other than an export to ``overwrite``), or if the
            network cannot be exported.
    """
    write = find(FORMATS, format, "format").load()
    run = Run(path)
    calibration = run.read_calibration()
    write(
        run.model("cpu"),
        calibration.policy,
        out,
        classes=run.classes,
        preprocessing=preprocessing_of(run.settings),
        exit_macs=calibration.exit_macs,
        name=run.settings.model,
        reference=calibration.reference,
        overwrite=overwrite,
    )
    return sorted(Path(out).iterdir())


def _record(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "images": evaluation.images,
        "left_out": evaluation.left_out,
        "exit_macs": list(evaluation.exit_macs),
        "anytime": evaluation.anytime,
        "curve": [
            {
                "p": point.p,
                "thresholds": list(point.policy.thresholds),
                "calibration": point.calibration._asdict(),
                "test": point.test._asdict(),
            }
            for point in evaluation.curve
        ],
        "calibrated": evaluation.calibrated._asdict() if evaluation.calibrated else None,
    }


def read_evaluation(run: Run) -> Evaluation:
    """What :func:`evaluate` recorded last.

    Raises:
        UserError: without a record, or if it is damaged or of another checkpoint.
    """
    path, again = run.path / "evaluation.json", f"run `exitwise evaluate {run.path}`"
    if not path.is_file():
        raise UserError(f"expected an evaluated run at {run.path}; {again} first")
    content = read_json(path)
    try:
        checkpoint, calibrated = content.get("checkpoint"), content["calibrated"]
        evaluation = Evaluation(
            tuple(content["exit_macs"]),
            list(content["anytime"]),
            [
                CurvePoint(
                    point["p"], ExitPolicy(point["thresholds"]), *map(_point, (point["calibration"], point["test"]))
                )
                for point in content["curve"]
            ],
            None if calibrated is None else _point(calibrated),
            content["images"],
            content["left_out"],
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"expected test results in {path}; {error!r}: {again} again") from error
    if checkpoint != run.best().name:
        made = f"was made for {checkpoint}" if checkpoint else "does not say for which checkpoint it was made"
        raise UserError(f"{path} {made}, and the best one is now {run.best().name}: {again} again")
    return evaluation


def _point(record: dict[str, Any]) -> OperatingPoint:
    return OperatingPoint(record["accuracy"], record["macs"], tuple(record["shares"]))


class _MetricsWriter:
    """Passes reports on and keeps metrics.csv up to date."""

    def __init__(self, run: Run, reporter: Reporter | None) -> None:
        self.run = run
        self.reporter = reporter

    def on_start(self, data: str) -> None:
        if self.reporter is not None:
            self.reporter.on_start(data)

    def on_step(self, iteration: int, total: int, meters: Any) -> None:
        if self.reporter is not None:
            self.reporter.on_step(iteration, total, meters)

    def on_epoch(self, history: list[dict[str, float]]) -> None:
        self.run.write_metrics(history)
        if self.reporter is not None:
            self.reporter.on_epoch(history)
