"""``exitwise train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from exitwise.cli.progress import RichReporter, plain_console
from exitwise.errors import UserError
from exitwise.settings.checks import (
    check_data,
    check_not_moved,
    check_run_folder,
    check_weights,
    is_of_signals,
    is_run_folder,
)
from exitwise.settings.compose import compose, continued
from exitwise.settings.fields import Fields
from exitwise.settings.schema import Settings, check_values, is_backbone, resolve
from exitwise.settings.yaml import read_yaml, to_yaml

ACCURACY_DROP = 0.01
"""What a run is calibrated for after training: accuracy that may be lost against the full network."""


def train(
    *,
    recipe: str | None = None,
    config: Path | None = None,
    out: Path | None = None,
    resume: Literal["auto", "never"] = "auto",
    extend_to: int | None = None,
    print_config: bool = False,
    settings: Annotated[Fields | None, Parameter(name="*", show_default=False, consume_multiple=True)] = None,
) -> None:
    """Train a network with exits. The same command continues an interrupted run.

    So does --out RUN alone, by the run's own settings.

    Examples:

        exitwise train
        exitwise train --data ./photos --model timm/resnet18 --exits 3
        exitwise train --data ./photos --out runs/photos
        exitwise train --out runs/photos --extend-to 30
        exitwise train --data mails.csv --model hf/sentence-transformers/all-MiniLM-L6-v2
        exitwise train --data ./photos --model timm/resnet10t --exits 1 --distil-from runs/photos
        exitwise train --recipe cifar10_msdnet5 --data ./cifar10 --method uniform --batch-size 256

    Parameters
    ----------
    recipe
        Named settings to start from (`exitwise recipes` lists them); by default the data set's.
    config
        YAML file of settings that override the recipe's.
    out
        Run folder; by default runs/RECIPE-METHOD-SEED.
    resume
        auto: continue the run that is in the run folder, if any, by its own settings; never: refuse to.
    extend_to
        Continue the run for that many epochs in all, by the schedule of the longer training. Its other settings stay.
    print_config
        Print the resolved settings as YAML and stop.
    settings
        Settings that override recipe and file.
    """
    flags = settings.model_dump(include=settings.model_fields_set) if settings is not None else {}
    content = read_yaml(config) if config is not None else {}
    its_own = out is not None and is_run_folder(out) and recipe is None and config is None and resume == "auto"
    if extend_to is not None:
        if out is None or not its_own:
            raise UserError("--extend-to goes with --out RUN, a run that is there, and neither recipe nor config")
        check_values({"epochs": extend_to})
        flags["epochs"] = extend_to
    resolved = (
        continued(resolve(read_yaml(out / "config.yaml")), flags)
        if out is not None and its_own
        else compose(recipe, content, flags)
    )
    if print_config:
        print(to_yaml(resolved), end="")
        return
    if out is not None and its_own:
        check_not_moved(out, resolved.data, resolved.noun)
    else:
        check_data(resolved.data)
        check_weights(resolved.pretrained)
    if resolved.distil_from is not None:
        check_run_folder(Path(resolved.distil_from))

    import exitwise as ew
    from exitwise.processes.distributed import launched
    from exitwise.shown import pasteable, percent

    name = recipe or content.get("recipe") or Path(resolved.data).name
    out = out or Path("runs") / f"{name}-{resolved.method}-{resolved.seed}"
    rank, processes = launched()
    console = plain_console(quiet=rank > 0)
    header = [
        f"training {resolved.model} on {resolved.data} with {resolved.method} into {out}",
        describe_settings(resolved) + (f", {processes} processes" if processes > 1 else ""),
    ]
    with RichReporter(console, header) as reporter:
        result = ew.train(resolved, out, reporter, resume="extend" if extend_to else resume)
    if rank > 0:
        return
    console.print(result)
    if result.ended_early:
        console.print(f"ended after epoch {len(result.history)}: {resolved.patience} epochs without a better one")
    if ledger := str(result.splits.ledger):
        console.print(f"of {result.splits.ledger.images} image files {ledger}; see {out / 'images.json'}")
    calibration = ew.calibrate(out, max_accuracy_drop=ACCURACY_DROP, device=resolved.device, splits=result.splits)
    evaluate = pasteable("exitwise", "evaluate", out)
    if resolved.exit_count == 1:
        console.print(f"next: {evaluate}")
        return
    console.print(f"calibrated to lose at most {percent(ACCURACY_DROP)} of accuracy on held-out {resolved.noun}")
    console.print(calibration)
    saved = 1 - calibration.expected["macs"] / calibration.exit_macs[-1]
    console.print(f"saves {percent(saved)} of the full network's MACs")
    console.print(f"next: {evaluate}; for another budget: {pasteable('exitwise', 'calibrate', out, '--budget', 0.5)}")


def describe_settings(settings: Settings) -> str:
    """Return what matters most of the settings, in a line."""
    parts = [
        f"{settings.epochs} epochs",
        f"batch {settings.batch_size}",
        f"{settings.optimizer} lr {settings.lr:g}",
        _of_what(settings),
    ]
    if settings.backbone_lr_factor != 1:
        parts.append(f"backbone lr x {settings.backbone_lr_factor:g}")
    if is_backbone(settings.model):
        parts.append(f"weights {settings.pretrained}")
        parts.append(f"regime {settings.regime}")
    if settings.distil_from is not None:
        parts.append(f"taught by {settings.distil_from}")
    return ", ".join(parts)


def _of_what(settings: Settings) -> str:
    side = settings.image_size
    if settings.tokens is not None:
        return f"texts of up to {settings.tokens} tokens"
    return f"signals of {side} values" if is_of_signals(settings.data) else f"images {side}x{side}"
