"""Send a calibrated run to Hugging Face's hub, with a model card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from exitwise.catalogue.extras import needing_extras
from exitwise.runs.card import model_card
from exitwise.runs.folder import Run
from exitwise.runs.hub import copy_for_others, send
from exitwise.settings.schema import resolve
from exitwise.settings.yaml import read_yaml
from exitwise.shown import Shown
from exitwise.storage.files import write_text

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Pushed(Shown):
    """A run on the hub: its name and address there."""

    name: str
    address: str

    def __rich__(self) -> RenderableType:
        return f'sent to {self.address}; ew.Run.from_hub("{self.name}") fetches it'


def push(
    run: str | Path,
    name: str,
    *,
    calibration: str | None = None,
    licence: str | None = None,
    private: bool = False,
) -> Pushed:
    """Send a calibrated and evaluated run to Hugging Face's hub.

    Others get its settings, the weights of the best epoch, calibrations and results, and a model card; not the names of
    its image files, nor paths of this machine. The hub's client finds your token and its address (``HF_ENDPOINT``).

    Args:
        run: the run folder.
        name: OWNER/NAME on the hub; made if it is not there.
        calibration: name of the calibration that the card is of.
        licence: of the weights, by its short name, such as ``apache-2.0``.
        private: whether a new repository is to be private.

    Raises:
        UserError: for a run that is not calibrated or evaluated, a network in a local folder, or where sending fails.
    """
    source = Run(run).under(calibration)
    calibrated, evaluation = source.read_calibration(), source.read_evaluation()
    with TemporaryDirectory() as temporary, needing_extras("the hub"):
        folder = Path(temporary) / "run"
        copy_for_others(source.path, source.best(), folder)
        settings = resolve(read_yaml(folder / "config.yaml"))
        write_text(folder / "README.md", model_card(name, settings, source.data, calibrated, evaluation, licence))
        return Pushed(name, send(folder, name, private))
