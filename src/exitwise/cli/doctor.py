"""``exitwise doctor``: what is found in a data set and on the machine, printed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.table import Table

from exitwise.cli.progress import counting, plain_console
from exitwise.errors import UserError
from exitwise.settings.compose import compose
from exitwise.settings.fields import Fields
from exitwise.settings.schema import check_values
from exitwise.settings.yaml import read_yaml

if TYPE_CHECKING:
    from rich.console import Console

    from exitwise.doctor import Finding
    from exitwise.doctor.samples import Sample

MOST_ROWS, MOST_FILES = 40, 20


def doctor(
    *,
    recipe: str | None = None,
    config: Path | None = None,
    settings: Annotated[Fields | None, Parameter(name="*", show_default=False, consume_multiple=True)] = None,
) -> None:
    """Check a data set and this machine before training, and say what to mend.

    Takes what `exitwise train` takes, and asks what training, calibration and evaluation will ask. Decodes every image.
    Exit code 0: fine, or warnings only; 2: training would stop.

    Examples:

        exitwise doctor
        exitwise doctor --data ./photos
        exitwise doctor --data ./photos --model timm/resnet18 --exits 3 --workers 8 --max-broken 0.05

    Parameters
    ----------
    recipe
        Named settings to start from, as for `exitwise train`.
    config
        YAML file of settings that override the recipe's.
    settings
        Settings that override recipe and file; as many images are decoded at once as there are workers, 2 if unset.
    """
    flags = settings.model_dump(include=settings.model_fields_set) if settings is not None else {}
    content = read_yaml(config) if config is not None else {}
    check_values(flags)
    data, workers = flags.get("data", content.get("data")), flags.get("workers", content.get("workers", 2))

    from exitwise.doctor.data import examine_data
    from exitwise.doctor.machine import examine_machine

    console = plain_console()
    findings = list(examine_machine(workers, Path("runs")))
    print_findings(console, findings)
    if data is not None:
        resolved = compose(recipe, content, flags)
        with counting(console, resolved.noun) as progress:
            examination = examine_data(resolved, max(workers, 1), progress)
        if examination.images:
            console.print(classes_table(examination.images))
            print_broken(console, examination.images)
        print_findings(console, examination.findings)
        findings += examination.findings
    levels = {finding.level for finding in findings}
    if "problem" in levels:
        raise UserError("training would stop: see the lines above that begin with 'problem'")
    console.print("fine to train, with warnings" if "warning" in levels else "fine to train")


def print_findings(console: Console, findings: list[Finding]) -> None:
    """A line per finding, and one for what to do about it."""
    for level, text, mend in findings:
        console.print(f"{level:8} {text}")
        if mend:
            console.print(f"{'':8} -> {mend}")


def print_broken(console: Console, images: list[Sample]) -> None:
    """The broken files, by kind."""
    faults = sorted((image.fault for image in images if image.fault is not None), key=lambda fault: fault.kind)
    for path, kind, reason in faults[:MOST_FILES]:
        console.print(f"{kind}: {path} ({reason})")
    if len(faults) > MOST_FILES:
        console.print(f"and {len(faults) - MOST_FILES} more broken files")


def classes_table(images: list[Sample]) -> Table:
    """Return images per class and part, and the broken ones among them; of many classes, the smallest."""
    parts = list(dict.fromkeys(image.part for image in images))
    counts = Counter((image.name, image.part) for image in images)
    broken = Counter(image.name for image in images if image.fault is not None)
    totals = Counter(image.name for image in images)
    names = sorted(totals, key=lambda name: (totals[name], name))
    shown = sorted(names[:MOST_ROWS])
    more = f" (the {MOST_ROWS} smallest of {len(names)})" if len(names) > MOST_ROWS else ""
    table = Table(title=f"Images per class{more}")
    table.add_column("class")
    for part in parts:
        table.add_column(part or "images", justify="right")
    table.add_column("broken", justify="right")
    for name in shown:
        table.add_row(name, *(str(counts[name, part]) for part in parts), str(broken[name] or ""))
    return table
