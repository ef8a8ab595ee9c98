"""``exitwise train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from exitwise.cli.progress import RichReporter, plain_console
from exitwise.config import Fields, read_yaml, to_yaml
from exitwise.recipes import compose


def train(
    *,
    recipe: str | None = None,
    config: Path | None = None,
    out: Path | None = None,
    print_config: bool = False,
    settings: Annotated[Fields | None, Parameter(name="*", show_default=False, consume_multiple=True)] = None,
) -> None:
    """Train a network with exits. The same command continues an interrupted run.

    Examples:

        exitwise train
        exitwise train --data ./photos --out runs/photos
        exitwise train --recipe cifar10_msdnet5 --data ./cifar10 --method uniform --batch-size 256

    Parameters
    ----------
    recipe
        Named settings to start from (`exitwise recipes` lists them); by default the data set's.
    config
        YAML file of settings that override the recipe's.
    out
        Run folder; by default runs/RECIPE-METHOD-SEED.
    print_config
        Print the resolved settings as YAML and stop.
    settings
        Settings that override recipe and file.
    """
    flags = settings.model_dump(include=settings.model_fields_set) if settings is not None else {}
    content = read_yaml(config) if config is not None else {}
    resolved = compose(recipe, content, flags)
    if print_config:
        print(to_yaml(resolved), end="")
        return

    from exitwise import workflow
    from exitwise.cli.tables import exits_table

    name = recipe or content.get("recipe") or Path(resolved.data).name
    out = out or Path("runs") / f"{name}-{resolved.method}-{resolved.seed}"
    console = plain_console()
    console.print(
        f"training {resolved.model} on {resolved.data} with {resolved.method} into {out} "
        f"(batch {resolved.batch_size}, lr {resolved.lr:g})",
        soft_wrap=True,
    )
    with RichReporter(console) as reporter:
        result = workflow.train(resolved, out, reporter)
    console.print(exits_table(result))
    console.print(f"next: exitwise calibrate {out} --budget 0.5")
