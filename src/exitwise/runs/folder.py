"""A run folder: settings, data record, checkpoints, calibration and results of one training run, by name.

::

    RUN/
      config.yaml         resolved settings            environment.json   versions, device, command
      data.json           classes, split sizes and fingerprints
      images.csv.gz       each image file by part and name; only for files
      metrics.csv         one row per epoch            checkpoints/       last-*, best-*
      weights.json        a few samples' losses and weights at each exit, per epoch
      images.json         image files by what became   skipped_images.csv the broken ones; both only for folders
      .lock               held while training          figures/
      calibration.json    budget, thresholds           evaluation.json    test results
      bench.json          measured times               network.json       places of a backbone's exits
      cascade.json        networks of a cascade        teacher.json       run that all exits learned from
      calibration-NAME.json, evaluation-NAME.json, bench-NAME.json        the same for a calibration with a name

Each JSON file states its schema and version (:mod:`exitwise.runs.records`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from exitwise.catalogue.sources import SOURCES
from exitwise.data import Splits
from exitwise.data.ledger import ImageLedger
from exitwise.deploy.calibration import CALIBRATION, Calibration
from exitwise.errors import UserError
from exitwise.models.backbones.exited import ExitedModel
from exitwise.models.staged import StagedModel
from exitwise.runs import build
from exitwise.runs.hub import fetch
from exitwise.runs.records.cascade import CASCADE, Members
from exitwise.runs.records.data import DATA, IMAGES
from exitwise.runs.records.environment import ENVIRONMENT, environment
from exitwise.runs.records.evaluation import EVALUATION, Evaluation
from exitwise.runs.records.identity import KNOWN, changes, write_known
from exitwise.runs.records.metrics import METRICS, write_metrics
from exitwise.runs.records.network import NETWORK
from exitwise.runs.records.skipped import SKIPPED, read_skipped, write_skipped
from exitwise.runs.records.teacher import TEACHER
from exitwise.runs.records.weights import WEIGHTS
from exitwise.settings.checks import check_not_moved, check_run_folder
from exitwise.settings.schema import MAY_CHANGE_ON_RESUME, Settings, resolve
from exitwise.settings.yaml import read_yaml, to_yaml
from exitwise.storage.files import write_text
from exitwise.storage.lock import LOCK
from exitwise.training.checkpoint import CheckpointError, load_checkpoint
from exitwise.training.checkpoint_folder import CheckpointFolder

Resume = Literal["auto", "never", "extend"]
"""Whether to continue a run that is there already, to refuse, or to continue it for more epochs than it was to have."""


class Run:
    """An existing run folder.

    Raises:
        UserError: if ``path`` is no run folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        check_run_folder(self.path)
        self.settings = resolve(read_yaml(self.config_path))
        self.data: dict[str, Any] = DATA.read(self.path)
        self.name: str | None = None
        self.moved_to: Path | None = None

    @classmethod
    def from_hub(cls, name: str, *, revision: str | None = None, folder: str | Path | None = None) -> Run:
        """Return a run that was sent to Hugging Face's hub (:func:`exitwise.push`), fetched if need be.

        Args:
            name: OWNER/NAME of the repository.
            revision: a branch, a tag or a commit.
            folder: where to lay it; by default the hub's cache.

        Raises:
            UserError: if it cannot be had, or is no run.
        """
        return cls(fetch(name, revision, folder))

    def under(self, name: str | None) -> Run:
        """Return the run with its calibration of this name, and what was measured of that; None: the usual one.

        Raises:
            UserError: for a name that is none.
        """
        CALIBRATION.called(name)
        run = copy.copy(self)
        run.name = name
        return run

    def at(self, data: str | Path | None) -> Run:
        """Return the run with its images where they lie now: at ``data``, whatever its settings say; None: there.

        They are known by what they are, not by where they lie.

        Raises:
            UserError: if nothing is there.
        """
        if data is None:
            return self
        if not Path(data).exists():
            raise UserError(f"expected the {self.settings.noun} of {self.path} at {data}; found nothing")
        run = copy.copy(self)
        place = str(Path(data).resolve())
        run.moved_to = Path(data)
        moved = {"data_root": place} if self.settings.data in SOURCES else {"data": place}
        run.settings = self.settings.model_copy(update=moved)
        return run

    def option(self, name: str = "--calibration") -> str:
        """Return what a command is given to take the calibration of this name; empty for the usual one."""
        return "" if self.name is None else f" {name} {self.name}"

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> CheckpointFolder:
        return CheckpointFolder(self.path / "checkpoints")

    @property
    def classes(self) -> list[str]:
        """Class names, in the order of the logits."""
        return self.data["classes"]

    @property
    def cascade(self) -> Members | None:
        """Return the networks of a cascade; None of a run of one network.

        Raises:
            UserError: if the record is damaged.
        """
        return CASCADE.read(self.path) if CASCADE.exists(self.path) else None

    @property
    def network(self) -> str:
        """Name of the network, or of those in a cascade."""
        members = self.cascade
        return self.settings.model if members is None else ", ".join(members.names)

    @property
    def exits(self) -> int:
        """Number of exits."""
        members = self.cascade
        return self.settings.exit_count if members is None else members.exits

    def as_built(self) -> Settings:
        """Return the settings with the exits where they are; as they are if there is no record of that."""
        return as_built(self.settings, self.path)

    @classmethod
    def create(
        cls, path: str | Path, settings: Settings, splits: Splits, command: Sequence[str], resume: Resume = "auto"
    ) -> Run:
        """Start a run folder, or open the one there if it is of the same settings and data.

        What a killed process was writing there is removed. The caller holds the folder's lock.

        Raises:
            UserError: if the folder holds something else; nothing is changed then.
        """
        path = Path(path)
        record = splits.summary()
        check_vacant(path, settings, resume)
        _tidy(path)
        if (path / "config.yaml").is_file():
            run = cls(path)
            if run.data == record:
                if run.settings != settings:  # where its images lie, how long it trains, what is computed alike
                    write_text(path / "config.yaml", to_yaml(settings))
                return cls(path)
            if run.checkpoints.latest("last") is not None:
                raise UserError(f"expected the data that {path} was trained on; {changes(path, splits, settings.noun)}")
        (path / SKIPPED).unlink(missing_ok=True)
        DATA.write(path, record)
        write_known(path, splits)
        ENVIRONMENT.write(path, environment(command))
        write_text(path / "config.yaml", to_yaml(settings))
        return cls(path)

    def splits(self) -> Splits:
        """Return the data of this run, split as it was for training.

        Raises:
            UserError: if the data has changed since.
        """
        splits = self.look_up_splits()
        self.follow(splits.ledger)
        return splits

    def look_up_splits(self) -> Splits:
        """Return :meth:`splits`, without a word in the run's records on broken images.

        Raises:
            UserError: if the data has changed since.
        """
        check_not_moved(self.path, self.settings.data, self.settings.noun)
        splits = build.load_splits(self.settings)
        if splits.summary() != self.data:
            raise UserError(
                f"expected the data that {self.path} was trained on; {changes(self.path, splits, self.settings.noun)}"
            )
        return splits

    def follow(self, ledger: ImageLedger) -> None:
        """Enter in a ledger what earlier commands on this run found broken, and record it from now on.

        Raises:
            DataError: if the ledger's limit is passed.
        """
        if not ledger.images:
            return
        ledger.on_change = lambda: self._write_images(ledger)
        ledger.skip(read_skipped(self.path))
        self._write_images(ledger)

    def _write_images(self, ledger: ImageLedger) -> None:
        IMAGES.write(self.path, ledger.summary())
        if ledger.skipped:
            write_skipped(self.path, ledger.skipped.values())

    def best(self) -> Path:
        """Return the checkpoint of the best epoch.

        Raises:
            UserError: if there is none yet.
        """
        best = self.checkpoints.latest("best")
        if best is None:
            raise UserError(
                f"expected a trained run at {self.path}; it has no checkpoint yet (`exitwise train` makes one)"
            )
        return best

    def model(self, device: torch.device | str = "cpu") -> StagedModel:
        """Return the network with the weights of the best epoch, in eval mode.

        Raises:
            UserError: without a checkpoint, or if it is of another network.
        """
        best = self.best()
        members, shape = self.cascade, self.settings.input_shape
        model: StagedModel = (
            build.build_model(self.as_built(), len(self.classes))
            if members is None
            else build.build_cascade(members, len(self.classes), shape)
        )
        try:
            state = load_checkpoint(best)["model"]
        except CheckpointError as error:
            raise CheckpointError(f"{error} (the best epoch is in no other: restore a copy, or train anew)") from error
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            detail = [line.strip() for line in str(error).splitlines() if line.strip()][1]
            raise CheckpointError(f"{best} is a checkpoint of another model than {self.network}: {detail}") from error
        return model.eval().to(device)

    def write_network(self, model: StagedModel) -> None:
        """Write network.json, once: where the early exits of a backbone are."""
        if isinstance(model, ExitedModel) and not NETWORK.exists(self.path):
            NETWORK.write(self.path, [point.name for point in model.points])

    def write_metrics(self, history: Sequence[dict[str, float]]) -> None:
        """Write metrics.csv anew from all rows so far."""
        write_metrics(self.path, history)

    def write_weights(self, epochs: Sequence[dict[str, Any]]) -> None:
        """Write weights.json: see :meth:`~exitwise.training.samples.WeightSamples.rows`."""
        WEIGHTS.write(self.path, epochs)

    def read_weights(self) -> Sequence[dict[str, Any]] | None:
        """Return what :meth:`write_weights` wrote; None for a run that has not ended, or is older than the record.

        Raises:
            UserError: if the file is damaged.
        """
        return WEIGHTS.read(self.path) if WEIGHTS.exists(self.path) else None

    def write_calibration(self, calibration: Calibration) -> None:
        """Write calibration.json."""
        CALIBRATION.called(self.name).write(self.path, calibration)

    @property
    def is_calibrated(self) -> bool:
        """Return whether a calibration is recorded, of whichever checkpoint."""
        return CALIBRATION.called(self.name).exists(self.path)

    def read_calibration(self, model: StagedModel | None = None) -> Calibration:
        """Return the calibration of this run; with its network, only if it was made for those weights.

        Raises:
            UserError: if it has not been calibrated, or its record is damaged or of another checkpoint or network.
        """
        again, record = f"run `exitwise calibrate {self.path}{self.option('--name')}", CALIBRATION.called(self.name)
        if not self.is_calibrated:
            what = "a calibrated run" if self.name is None else f"a run calibrated by the name {self.name}"
            raise UserError(f"expected {what} at {self.path}; {again} --budget 0.5` first")
        calibration = record.read(self.path)
        path, expected = record.path(self.path), len(calibration.proportions)
        if calibration.policy.exits != expected:
            raise UserError(f"expected {expected - 1} thresholds in {path}; got {calibration.policy.exits - 1}")
        best = self.best().name
        if calibration.checkpoint != best:
            raise UserError(
                f"{path} was made for {calibration.checkpoint}, but the best checkpoint is now {best}: {again}` again"
            )
        if model is not None and not calibration.has_weights_of(model):
            raise UserError(f"{path} was made for a network with other weights than this run's: {again}` again")
        return calibration

    def write_evaluation(self, evaluation: Evaluation) -> None:
        """Write evaluation.json."""
        EVALUATION.called(self.name).write(self.path, evaluation)

    def read_evaluation(self) -> Evaluation:
        """Return the recorded test results of this run.

        Raises:
            UserError: if it has not been evaluated, or its record is damaged or of another checkpoint.
        """
        record, again = EVALUATION.called(self.name), f"run `exitwise evaluate {self.path}{self.option()}`"
        path = record.path(self.path)
        if not record.exists(self.path):
            raise UserError(f"expected an evaluated run at {self.path}; {again} first")
        evaluation = record.read(self.path)
        made, best = evaluation.checkpoint, self.best().name
        if made != best:
            said = f"was made for {made}" if made else "does not say for which checkpoint it was made"
            raise UserError(f"{path} {said}, and the best one is now {best}: {again} again")
        return evaluation


def as_built(settings: Settings, path: Path) -> Settings:
    """Return a run's settings with the exits where they are; as they are if there is no record of that."""
    if not NETWORK.exists(path):
        return settings
    return settings.model_copy(update={"exits": None, "exits_at": NETWORK.read(path), "place_by": "macs"})


def check_same_data(runs: Sequence[Run], names: Sequence[str]) -> None:
    """Raise UserError unless runs, called ``names``, have the same classes and images, split in the same way."""
    for run, name in zip(runs, names, strict=True):
        check_same_classes(runs[0].classes, names[0], run.classes, name)
        if run.data != runs[0].data:
            raise UserError(
                f"expected runs of the same {runs[0].settings.noun}, split in the same way; {names[0]} and "
                f"{name} differ"
            )


def check_same_classes(classes: Sequence[str], name: str, others: Sequence[str], other: str) -> None:
    """Raise UserError unless the classes of two runs, called ``name`` and ``other``, are the same in the same order."""
    if list(others) != list(classes):
        how = "them in another order" if sorted(others) == sorted(classes) else f"others ({len(others)})"
        raise UserError(f"expected runs of the same classes; {name} has {len(classes)}, {other} has {how}")


def run_names(runs: Sequence[Run]) -> list[str]:
    """Return the folder's name of each run, or its path as given where names repeat."""
    names = [run.path.resolve().name for run in runs]
    return [name if names.count(name) == 1 else str(run.path) for run, name in zip(runs, names, strict=True)]


def _tidy(path: Path) -> None:
    """Remove what a killed training was writing, the calibration at its end included."""
    records = (DATA, ENVIRONMENT, NETWORK, CASCADE, TEACHER, CALIBRATION, WEIGHTS, IMAGES)
    for name in ("config.yaml", METRICS, SKIPPED, KNOWN, *(record.file for record in records)):
        for temporary in path.glob(f".{name}.*"):
            temporary.unlink()
    CheckpointFolder(path / "checkpoints").tidy()


def check_new(path: Path, settings: Settings) -> None:
    """Raise UserError unless a run that is not trained here can be written at ``path``, where none may be."""
    if (path / "config.yaml").is_file():
        raise UserError(f"{path} holds a run, and this one is written anew: choose another folder")
    check_vacant(path, settings)


def check_vacant(path: Path, settings: Settings, resume: Resume = "auto") -> None:
    """Raise UserError unless a run with these settings can be started or, unless ``never``, continued at ``path``."""
    if settings.distil_from is not None and Path(settings.distil_from).resolve() == path.resolve():
        raise UserError(f"expected another run to learn from (distil_from); got the run itself, {path}")
    images = Path(settings.data)
    if images.is_dir() and path.resolve().is_relative_to(images.resolve()):
        raise UserError(f"expected a run folder outside the images' folder {images}; got {path}")
    if (path / "config.yaml").is_file():
        if resume == "never":
            raise UserError(f"{path} holds a run: continue it with --resume auto, or choose another --out")
        if CASCADE.exists(path):
            raise UserError(
                f"{path} holds a cascade, whose networks are trained before, each by itself: choose another --out"
            )
        former = Run(path).settings
        if resume == "extend":
            check_extended(path, former, settings.epochs)
            former = former.model_copy(update={"epochs": settings.epochs})
        check_same_settings(path, former, settings.model_dump())
    elif resume == "extend":
        raise UserError(f"expected a run to extend at {path}; found none")
    elif path.exists() and (not path.is_dir() or (any(path.iterdir()) and not _hardly_begun(path))):
        raise UserError(f"expected a run folder, an empty folder or nothing at {path}; it holds something else")


def check_same_settings(path: Path, former: Settings, values: Mapping[str, Any]) -> None:
    """Raise UserError if these settings change what a run computes. Its images may lie elsewhere: what they are is
    looked at later."""
    changed = [
        key
        for key, value in values.items()
        if getattr(former, key) != value and key not in {*MAY_CHANGE_ON_RESUME, "data"}
    ]
    if changed:
        difference = ", ".join(f"{key} {getattr(former, key)!r} (now {values[key]!r})" for key in changed)
        hint = " (more epochs: --extend-to)" if changed == ["epochs"] else ""
        raise UserError(f"{path} holds a run with other settings: {difference}{hint}; choose another --out")


def check_extended(path: Path, former: Settings, epochs: int) -> None:
    """Raise UserError unless a run can be trained on for that many epochs in all."""
    if epochs <= former.epochs:
        raise UserError(f"expected more epochs than the {former.epochs} of {path} to extend it; got {epochs}")
    if former.max_iterations is not None:
        raise UserError(f"{path} ends by max_iterations {former.max_iterations}, not by epochs: it is not extended")
    longer = former.model_copy(update={"epochs": epochs})
    if (former.regime == "heads" or former.refit_heads) and longer.kept_passes != former.kept_passes:
        raise UserError(
            f"{path} keeps features of {former.kept_passes} passes, {longer.kept_passes} then: it is not extended"
        )


def _hardly_begun(path: Path) -> bool:
    """Return whether a folder holds nothing but what a training wrote that was killed before its config.yaml was
    there."""
    names = {each.name for each in path.iterdir()}
    return LOCK in names and all(
        name.startswith(".") or name in ("data.json", KNOWN, "environment.json") for name in names
    )
