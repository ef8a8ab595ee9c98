"""A run folder: settings, data record, checkpoints, calibration and results of one training run, by name.

::

    RUN/
      config.yaml         resolved settings            environment.json   versions, device, command
      data.json           classes, split sizes and fingerprints
      metrics.csv         one row per epoch            checkpoints/       last-*, best-*
      weights.json        a few samples' losses and weights at each exit, per epoch
      images.json         image files by what became   skipped_images.csv the broken ones; both only for folders
      .lock               held while training          figures/
      calibration.json    budget, thresholds           evaluation.json    test results
"""

from __future__ import annotations

import csv
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision

from exitwise.data import Preprocessing, Splits, load
from exitwise.data.ledger import ImageLedger, Skipped
from exitwise.deploy.monitor import Reference
from exitwise.errors import UserError
from exitwise.exiting.confidence import Confidence
from exitwise.exiting.policy import ExitPolicy
from exitwise.models import create_model
from exitwise.models.staged import StagedModel
from exitwise.settings.checks import check_run_folder
from exitwise.settings.schema import MAY_CHANGE_ON_RESUME, Settings, is_backbone, resolve
from exitwise.settings.yaml import read_yaml, to_yaml
from exitwise.storage.files import read_json, to_csv, write_json, write_text
from exitwise.storage.lock import LOCK
from exitwise.training.checkpoint import CheckpointError, load_checkpoint
from exitwise.training.checkpoint_folder import CheckpointFolder
from exitwise.version import __version__

Resume = Literal["auto", "never"]
"""Whether to continue a run that is there already, or to refuse."""

SKIPPED = "skipped_images.csv"


@dataclass(frozen=True)
class Calibration:
    """A calibrated exit policy and what it was calibrated for.

    Attributes:
        policy: the thresholds.
        budget: what was asked for, such as ``{"macs": 2e7}`` or ``{"p": 0.75}``.
        proportions: the exit proportions that the thresholds were found for.
        exit_macs: cost of leaving at each exit.
        expected: accuracy, macs and shares on the calibration split.
        checkpoint: name of the checkpoint whose outputs were calibrated.
        exit_seconds: measured time to leave at each exit, if the budget was a latency.
        guarantee: what holds with which probability, if one was asked for.
        reference: how the calibration images left, to compare others with.
    """

    policy: ExitPolicy
    budget: dict[str, Any]
    proportions: tuple[float, ...]
    exit_macs: tuple[int, ...]
    expected: dict[str, Any]
    checkpoint: str
    exit_seconds: tuple[float, ...] | None = None
    guarantee: dict[str, Any] | None = None
    reference: Reference | None = None


class Run:
    """An existing run folder.

    Raises:
        UserError: if ``path`` is no run folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        check_run_folder(self.path)
        self.settings = resolve(read_yaml(self.config_path))
        self.data: dict[str, Any] = read_json(self.path / "data.json")
        if not isinstance(self.data, dict) or not {"classes", "sizes", "sha256"} <= set(self.data):
            raise UserError(f"expected classes, sizes and sha256 in {self.path / 'data.json'}; got something else")

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
                return run
            if run.checkpoints.latest("last") is not None:
                raise UserError(f"expected the data that {path} was trained on; the images have changed")
        (path / SKIPPED).unlink(missing_ok=True)
        write_json(path / "data.json", record)
        write_json(path / "environment.json", environment(command))
        write_text(path / "config.yaml", to_yaml(settings))
        return cls(path)

    def splits(self) -> Splits:
        """The data of this run, split as it was for training.

        Raises:
            UserError: if the data has changed since.
        """
        splits = load_splits(self.settings)
        if splits.summary() != self.data:
            raise UserError(f"expected the data that {self.path} was trained on; the images have changed")
        self.follow(splits.ledger)
        return splits

    def follow(self, ledger: ImageLedger) -> None:
        """Enter in a ledger what earlier commands on this run found broken, and record it from now on.

        Raises:
            DataError: if the ledger's limit is passed.
        """
        if not ledger.images:
            return
        ledger.on_change = lambda: self._write_images(ledger)
        ledger.skip(read_skipped(self.path / SKIPPED))
        self._write_images(ledger)

    def _write_images(self, ledger: ImageLedger) -> None:
        write_json(self.path / "images.json", ledger.summary())
        if ledger.skipped:
            write_text(self.path / SKIPPED, to_csv(Skipped._fields, ledger.skipped.values()))

    def best(self) -> Path:
        """The checkpoint of the best epoch.

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
        """The network with the weights of the best epoch, in eval mode.

        Raises:
            UserError: without a checkpoint, or if it is of another network.
        """
        best = self.best()
        model = build_model(self.settings, len(self.classes))
        try:
            state = load_checkpoint(best)["model"]
        except CheckpointError as error:
            raise CheckpointError(f"{error} (the best epoch is in no other: restore a copy, or train anew)") from error
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            detail = [line.strip() for line in str(error).splitlines() if line.strip()][1]
            raise CheckpointError(
                f"{best} is a checkpoint of another model than {self.settings.model}: {detail}"
            ) from error
        return model.eval().to(device)

    def write_metrics(self, history: Sequence[dict[str, float]]) -> None:
        """Write metrics.csv anew from all rows so far."""
        if not history:
            return
        fields = list(dict.fromkeys(key for row in history for key in row))
        lines: list[list[Any]] = [fields, *([row.get(key, "") for key in fields] for row in history)]
        temporary = self.path / ".metrics.csv.tmp"
        with temporary.open("w", newline="") as file:
            csv.writer(file).writerows(lines)
        temporary.replace(self.path / "metrics.csv")

    def write_weights(self, epochs: Sequence[dict[str, Any]]) -> None:
        """Write weights.json: see :meth:`~exitwise.training.samples.WeightSamples.rows`."""
        write_text(self.path / "weights.json", json.dumps({"epochs": list(epochs)}) + "\n")

    def read_weights(self) -> list[dict[str, Any]] | None:
        """What :meth:`write_weights` wrote; None for a run that has not ended, or was trained before it was recorded.

        Raises:
            UserError: if the file is damaged.
        """
        path = self.path / "weights.json"
        if not path.is_file():
            return None
        try:
            return [{key: row[key] for key in ("epoch", "losses", "weights")} for row in read_json(path)["epochs"]]
        except (KeyError, TypeError) as error:
            raise UserError(f"expected epochs with their losses and weights in {path}; {error!r}") from error

    def write_calibration(self, calibration: Calibration) -> None:
        """Write calibration.json."""
        write_json(
            self.path / "calibration.json",
            {
                "budget": calibration.budget,
                "thresholds": list(calibration.policy.thresholds),
                "measure": calibration.policy.confidence.measure,
                "temperatures": calibration.policy.confidence.temperatures,
                "proportions": list(calibration.proportions),
                "exit_macs": list(calibration.exit_macs),
                "calibration": calibration.expected,
                "checkpoint": calibration.checkpoint,
                "exit_seconds": calibration.exit_seconds,
                "guarantee": calibration.guarantee,
                "reference": calibration.reference and calibration.reference.to_dict(),
            },
        )

    def read_calibration(self) -> Calibration:
        """The calibration of this run.

        Raises:
            UserError: if it has not been calibrated.
        """
        path = self.path / "calibration.json"
        if not path.is_file():
            raise UserError(
                f"expected a calibrated run at {self.path}; run `exitwise calibrate {self.path} --budget 0.5` first"
            )
        content = read_json(path)
        try:
            temperatures = content["temperatures"]
            reading = Confidence(content["measure"], None if temperatures is None else tuple(map(float, temperatures)))
            calibration = Calibration(
                ExitPolicy([None if t is None else float(t) for t in content["thresholds"]], reading),
                content["budget"],
                tuple(content["proportions"]),
                tuple(content["exit_macs"]),
                content["calibration"],
                content["checkpoint"],
                content["exit_seconds"],
                content["guarantee"],
                Reference.from_dict(content["reference"]) if content.get("reference") else None,
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"expected thresholds of exits in {path}; {error!r}") from error
        if calibration.policy.exits != len(calibration.proportions):
            raise UserError(
                f"expected {len(calibration.proportions) - 1} thresholds in {path}; got {calibration.policy.exits - 1}"
            )
        best = self.best()
        if calibration.checkpoint != best.name:
            raise UserError(
                f"{path} was made for {calibration.checkpoint}, but the best checkpoint is now {best.name}: "
                f"run `exitwise calibrate {self.path}` again"
            )
        return calibration


def _tidy(path: Path) -> None:
    """Remove what a killed training was writing, the calibration at its end included."""
    for name in (
        "config.yaml",
        "data.json",
        "environment.json",
        "metrics.csv",
        "calibration.json",
        "weights.json",
        "images.json",
        SKIPPED,
    ):
        for temporary in path.glob(f".{name}.*"):
            temporary.unlink()
    CheckpointFolder(path / "checkpoints").tidy()


def read_skipped(path: Path) -> list[Skipped]:
    """The broken images that a file of :meth:`Run.follow` lists; none if it is not there.

    Raises:
        UserError: if it is another file.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            fields, *rows = [tuple(row) for row in csv.reader(file)] or [()]
    except csv.Error:
        fields, rows = (), []
    if fields != Skipped._fields or any(len(row) != len(fields) for row in rows):
        raise UserError(f"expected a table of {', '.join(Skipped._fields)} in {path}; got something else")
    return [Skipped(*row) for row in rows]


def check_vacant(path: Path, settings: Settings, resume: Resume = "auto") -> None:
    """Raise UserError unless a run with these settings can be started or, unless ``never``, continued at ``path``."""
    images = Path(settings.data)
    if images.is_dir() and path.resolve().is_relative_to(images.resolve()):
        raise UserError(f"expected a run folder outside the images' folder {images}; got {path}")
    if (path / "config.yaml").is_file():
        if resume == "never":
            raise UserError(f"{path} holds a run: continue it with --resume auto, or choose another --out")
        old, new = Run(path).settings.model_dump(), settings.model_dump()
        changed = [key for key in new if old[key] != new[key] and key not in MAY_CHANGE_ON_RESUME]
        if changed:
            difference = ", ".join(f"{key} {old[key]!r} (now {new[key]!r})" for key in changed)
            raise UserError(f"{path} holds a run with other settings: {difference}; choose another --out")
    elif path.exists() and (not path.is_dir() or (any(path.iterdir()) and not _hardly_begun(path))):
        raise UserError(f"expected a run folder, an empty folder or nothing at {path}; it holds something else")


def _hardly_begun(path: Path) -> bool:
    """Whether a folder holds nothing but what a training wrote that was killed before its config.yaml was there."""
    names = {each.name for each in path.iterdir()}
    return LOCK in names and all(name.startswith(".") or name in ("data.json", "environment.json") for name in names)


def preprocessing_of(settings: Settings) -> Preprocessing:
    """What the settings say of images."""
    return Preprocessing(
        settings.image_size,
        tuple(settings.mean),
        tuple(settings.std),
        settings.augment,
        settings.interpolation,
        settings.crop,
        settings.smallest_crop,
    )


def load_splits(settings: Settings, *, max_broken: float = 1.0) -> Splits:
    """The data that the settings name; training limits the share of broken images, what comes after it does not."""
    return load(
        settings.data,
        preprocessing_of(settings),
        root=settings.data_root,
        calibration_fraction=settings.calibration_fraction,
        test_fraction=settings.test_fraction,
        seed=settings.split_seed,
        max_broken=max_broken,
    )


def build_model(settings: Settings, classes: int, *, pretrained: bool = False) -> StagedModel:
    """The network that the settings name, for that many classes; with its pretrained weights, if asked for."""
    options: dict[str, Any] = {
        "num_classes": classes,
        "input_shape": (len(settings.mean), settings.image_size, settings.image_size),
    }
    if is_backbone(settings.model):
        options |= {"exits": settings.exits, "at": settings.exits_at, "head": settings.head, "skip": settings.skip}
        if pretrained and settings.pretrained != "none":
            options["pretrained"] = settings.pretrained == "hub" or settings.pretrained
    model = create_model(settings.model, **options)
    if settings.regime == "heads":
        model.freeze_bodies()
    return model


def pick_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is the GPU if there is one.

    Raises:
        UserError: if there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"expected a device of this machine, such as cpu or cuda; {name!r} is not available") from error
    return device


def environment(command: Sequence[str]) -> dict[str, Any]:
    """Versions and machine, for the record."""
    return {
        "command": list(command),
        "exitwise": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
