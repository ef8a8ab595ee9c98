"""Runs on Hugging Face's hub: what others get of a run, how it is sent, and how it comes back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from exitwise.catalogue.extras import needing_extras
from exitwise.catalogue.sources import is_named
from exitwise.deploy.calibration import CALIBRATION
from exitwise.errors import UserError, in_a_line
from exitwise.runs.records.cascade import CASCADE
from exitwise.runs.records.environment import ENVIRONMENT
from exitwise.settings.schema import Settings, resolve
from exitwise.settings.yaml import read_yaml, to_yaml
from exitwise.storage.files import write_text

FILES = (
    *("config.yaml", "data.json", "environment.json", "network.json", "cascade.json", "metrics.csv", "weights.json"),
    *("calibration*.json", "evaluation*.json", "bench*.json", "README.md", "checkpoints/best-*/*"),
)
"""What is sent and fetched: no names of image files, and no checkpoint but the best."""


def copy_for_others(run: Path, best: Path, folder: Path) -> None:
    """Copy what others get of a run into a folder: without this machine's paths and the command.

    Args:
        run: the run's folder.
        best: its best checkpoint.
        folder: is made.

    Raises:
        UserError: for a network that lies in a folder of this machine.
    """
    folder.mkdir(parents=True)
    for pattern in FILES:
        for path in run.glob(pattern):
            if path.parent == run and path.name != "README.md":
                shutil.copyfile(path, folder / path.name)
    for path in folder.glob("calibration*.json"):
        name = path.stem.removeprefix("calibration").removeprefix("-") or None
        record = CALIBRATION.called(name)
        calibration = record.read(folder)
        if calibration.origin is not None and calibration.origin.data is not None:
            origin = calibration.origin._replace(data=Path(calibration.origin.data).name)
            record.write(folder, replace(calibration, origin=origin))
    shutil.copytree(best, folder / "checkpoints" / best.name)
    settings = _without_paths(resolve(read_yaml(run / "config.yaml")))
    write_text(folder / "config.yaml", to_yaml(settings))
    ENVIRONMENT.write(folder, {**ENVIRONMENT.read(run), "command": []})
    if CASCADE.exists(run):
        members = CASCADE.read(run)
        CASCADE.write(folder, members._replace(networks=tuple(map(_without_paths, members.networks))))


def _without_paths(settings: Settings) -> Settings:
    library, _, name = settings.model.partition("/")
    if library == "hf" and Path(name).is_dir():
        raise UserError(
            f"expected a network that others can have, such as hf/OWNER/NAME; {settings.model} is a folder of "
            "this machine"
        )
    changed: dict[str, Any] = {"data_root": None, "keep_in": None}
    if not is_named(settings.data):
        changed["data"] = Path(settings.data).name
    if settings.pretrained not in ("hub", "none"):
        changed["pretrained"] = Path(settings.pretrained).name
    if settings.distil_from is not None:
        changed["distil_from"] = Path(settings.distil_from).name
    return settings.model_copy(update=changed)


def send(folder: Path, name: str, private: bool = False) -> str:
    """Send a folder to the hub, into a repository that is made if need be; return its address.

    Raises:
        UserError: if that fails.
    """
    with _hub(f"to send {name} to the hub"):
        from huggingface_hub import HfApi

        hub = HfApi(library_name="exitwise")
        address = hub.create_repo(name, private=private, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Run of exitwise")
    return str(address)


def fetch(name: str, revision: str | None = None, folder: str | Path | None = None) -> Path:
    """Return the folder of a run of the hub, fetched if need be; arguments are those of :meth:`Run.from_hub`."""
    with _hub(f"to fetch {name} from the hub"):
        from huggingface_hub import HfApi

        found = HfApi(library_name="exitwise").snapshot_download(
            name, revision=revision, local_dir=folder, allow_patterns=list(FILES)
        )
    if not (Path(found) / "config.yaml").is_file():
        raise UserError(f"expected a run of exitwise as {name} on the hub; it has no config.yaml")
    return Path(found)


@contextmanager
def _hub(what: str) -> Iterator[None]:
    """Turn whatever the hub's client raises within into one line."""
    with needing_extras("the hub"):
        import huggingface_hub  # noqa: F401 -- what is missing is said before it is used
    try:
        yield
    except Exception as error:  # of its own, of HTTP and of files
        raise UserError(f"expected {what}; {in_a_line(error)}") from error
