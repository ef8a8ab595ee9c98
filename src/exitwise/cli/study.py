"""``exitwise study``."""

from __future__ import annotations

from pathlib import Path

from exitwise.cli.progress import plain_console
from exitwise.studying.plan import read_plan


def study(plan: Path, *, out: Path | None = None, jobs: int = 1, threads: int | None = None) -> None:
    """Compare trainings over seeds and recipes at equal updates and equal time, and say which one pays.

    The same command continues a study that was interrupted, and trains what was added to the plan.

    Examples:

        exitwise study study.yaml
        exitwise study study.yaml --jobs 2 --threads 1
        exitwise report runs/study

    Parameters
    ----------
    plan
        YAML file that names recipes, variants, seeds, and whether calibration images judge (stage select) or test
        images (stage confirm).
    out
        Folder of the runs and of study.json; by default runs/ and the name of the plan.
    jobs
        Trainings at a time, a process each.
    threads
        Of each training; by default all that torch would use are shared out.
    """
    read_plan(plan)

    import exitwise as ew

    out = out or Path("runs") / plan.stem
    plain_console().print(ew.study(plan, out, jobs=jobs, threads=threads))
