"""Train variants over seeds and recipes, and say which one pays, at equal updates and at equal time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from exitwise.data import Splits
from exitwise.data.sampling import EpochBatches
from exitwise.errors import Interrupted, PeerError, UserError
from exitwise.runs.build import load_splits
from exitwise.runs.folder import check_vacant
from exitwise.runs.records.environment import environment
from exitwise.settings.checks import check_data, check_weights
from exitwise.settings.schema import MAY_CHANGE_ON_RESUME, Settings
from exitwise.shown import say
from exitwise.storage.lock import locked
from exitwise.studying.cost import ratio, seconds_per_update, timed_updates
from exitwise.studying.judging import judge
from exitwise.studying.plan import Plan, Task, read_plan
from exitwise.studying.records import STUDY, Cost, Study
from exitwise.workflows.train import train

ENDLESS = 10**6
"""Epochs that a training is never as long as."""

SAVING = 60
"""Seconds that a process has to save, once its parent is gone."""


def study(plan: str | Path | Mapping[str, Any], out: str | Path, *, jobs: int = 1, threads: int | None = None) -> Study:
    """Train what a plan says, as far as it is not trained yet, and compare the variants with the baseline.

    With one seed, all variants start from the same network and see the same images in the same order. Each is compared
    with the baseline after equal updates, and after equal time: what an update costs is measured at the beginning, side
    by side, and the cheaper of the two trains as much longer. A call that was interrupted, or killed, is continued by
    the same call.

    Args:
        plan: a YAML file, or its content; ``exitwise/studying/plan.py`` shows one.
        out: folder of the runs and of study.json, which has all figures.
        jobs: trainings at a time, a process each; 1: in this process.
        threads: of each; by default torch's are shared out.

    Raises:
        UserError: for a plan that cannot be carried out, or a folder that holds runs of other settings; nothing has
            been trained then.
        Interrupted: after SIGTERM or SIGINT, with all steps saved.
    """
    read, out = read_plan(plan), Path(out)
    if jobs < 1 or (threads is not None and threads < 1):
        raise UserError(f"expected jobs and threads from 1 up; got {jobs} and {threads}")
    threads = threads or max(1, torch.get_num_threads() // jobs)
    found = _begin(read, out)
    with locked(out), _threads(threads):
        STUDY.write(out, found)
        for recipe in read.recipes:
            found = _with_costs(found, recipe)
            STUDY.write(out, found)
        tasks = _tasks(found)
        for task in tasks:
            check_vacant(task.folder(out), task.settings)
        say(f"{len(tasks)} runs to go")
        for record in _trained(tasks, read, out, jobs, threads):
            found = replace(found, runs=[*found.runs, record])
            STUDY.write(out, found)
            say("{recipe}, {variant}, {updates} updates, seed {seed}: done".format(**record))
    return found


def _begin(plan: Plan, out: Path) -> Study:
    """Return what is known before anything runs.

    Raises:
        UserError: if the data or a file of weights is not there, or the folder is of another study.
    """
    settings = {
        recipe: {name: plan.run(recipe, name, plan.seeds[0]) for name in plan.variants} for recipe in plan.recipes
    }
    for each in (one for variants in settings.values() for one in variants.values()):
        check_data(each.data)
        check_weights(each.pretrained)
    stated = {recipe: {name: _stated(each) for name, each in those.items()} for recipe, those in settings.items()}
    if not STUDY.exists(out):
        if out.exists() and (not out.is_dir() or any(path.name != ".lock" for path in out.iterdir())):
            raise UserError(
                f"expected the folder of a study, an empty one or nothing at {out}; it holds something else"
            )
        return Study(plan, stated, {}, [], environment([]))
    old = STUDY.read(out)
    _check_same(old, plan, stated, out)
    both = {recipe: {**old.settings.get(recipe, {}), **stated.get(recipe, {})} for recipe in {**old.settings, **stated}}
    return replace(old, plan=plan, settings=both)


def _stated(settings: Settings) -> dict[str, Any]:
    """Return the settings that change what is computed, but for the seeds."""
    return settings.model_dump(mode="json", exclude={*MAY_CHANGE_ON_RESUME, "seed", "split_seed"})


def _check_same(old: Study, plan: Plan, stated: Mapping[str, Mapping[str, Any]], out: Path) -> None:
    """Raise UserError if a folder holds runs that the plan would make in another way."""
    for name in ("stage", "splits", "baseline"):
        before, now = getattr(old.plan, name), getattr(plan, name)
        if before != now:
            raise UserError(f"{out} holds a study with {name} {before} (now {now}): choose another --out")
    for recipe, variants in stated.items():
        for variant, mine in variants.items():
            theirs = old.settings.get(recipe, {}).get(variant, mine)
            changed = [key for key in mine if key in theirs and theirs[key] != mine[key]]
            if changed:
                said = ", ".join(f"{key} {theirs[key]!r} (now {mine[key]!r})" for key in changed)
                raise UserError(
                    f"{out} holds runs of recipe {recipe}, variant {variant}, with other settings: {said}; choose "
                    "another --out"
                )


def _with_costs(found: Study, recipe: str) -> Study:
    """Return the study with what each variant's training costs, measured where it is not known."""
    plan, timed = found.plan, "time" in found.plan.equal
    known = {name: cost for name, cost in found.costs.get(recipe, {}).items() if not timed or cost.seconds is not None}
    new = [name for name in plan.others if name not in known]
    if not new and plan.baseline in known:
        return found
    settings = {name: plan.run(recipe, name, plan.seeds[0]) for name in (plan.baseline, *new)}
    splits = load_splits(settings[plan.baseline])
    updates = {name: updates_of(each, splits) for name, each in settings.items()}
    costs = {name: Cost(updates[name]) for name in settings}
    if timed:
        say(f"timing an update of {', '.join(settings)} on {recipe}, in turns")
        short = {
            name: each.model_copy(update={"epochs": ENDLESS, "max_iterations": timed_updates(each.meta_interval)})
            for name, each in settings.items()
        }
        seconds = seconds_per_update(short, lambda each, out, reporter: train(each, out, reporter, splits=splits))
        base = seconds[plan.baseline]
        costs = {name: Cost(updates[name], median(each), ratio(each, base)) for name, each in seconds.items()}
    return replace(found, costs={**found.costs, recipe: {**costs, **known}})


def updates_of(settings: Settings, splits: Splits) -> int:
    """Return how many loaded batches a training takes."""
    sampler = EpochBatches(len(splits.train), settings.batch_size, settings.seed)
    epochs = settings.epochs * sampler.batches_per_epoch
    return min(epochs, settings.max_iterations or epochs)


def _tasks(found: Study) -> list[Task]:
    """Return the runs that are missing: seed by seed, so that all comparisons can be made early."""
    done = {(run["recipe"], run["variant"], run["seed"], run["updates"]) for run in found.runs}
    tasks = [_task(found, *length, seed) for seed in found.plan.seeds for length in found.lengths]
    return [task for task in tasks if task.key not in done]


def _task(found: Study, recipe: str, variant: str, updates: int, seed: int) -> Task:
    settings, usual = found.plan.run(recipe, variant, seed), found.costs[recipe][variant].updates
    if updates != usual:
        epochs = -(-settings.epochs * updates // usual)
        settings = settings.model_copy(update={"epochs": epochs, "max_iterations": updates})
    return Task(recipe, variant, seed, updates, settings)


def _trained(tasks: Sequence[Task], plan: Plan, out: Path, jobs: int, threads: int) -> Iterator[dict[str, Any]]:
    """Yield the records of the runs as they end."""
    if jobs == 1:
        for task in tasks:
            yield _run(task, plan, out)
        return
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin_process, (threads,))
    try:
        for future in as_completed([pool.submit(_in_pool, task, plan, out) for task in tasks]):
            yield _record(future.result())
    except BrokenProcessPool as error:
        raise PeerError("a process of the study has ended before its run") from error
    except BaseException:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()  # which lets a training save what it has
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_process(threads: int) -> None:
    """Prepare one process of several."""
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent has ended, were it by ``kill -9``, but let a training save what it has."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    until = time.monotonic() + SAVING
    while not _stopped and time.monotonic() < until:
        time.sleep(0.5)
    os._exit(1)


_stopped: list[signal.Signals] = []
"""The signal that has stopped this process of several, after which it begins no other run."""


def _in_pool(task: Task, plan: Plan, out: Path) -> dict[str, Any] | signal.Signals:
    """Return the record of a run, or the signal that came."""
    if not _stopped:
        try:
            return _run(task, plan, out)
        except Interrupted as error:
            _stopped.append(error.number)
    return _stopped[0]


def _record(result: dict[str, Any] | signal.Signals) -> dict[str, Any]:
    if isinstance(result, signal.Signals):
        raise Interrupted(result)
    return result


def _run(task: Task, plan: Plan, out: Path) -> dict[str, Any]:
    """Train a run, or go on with it, and judge it."""
    splits, folder, began = _loaded(task.settings), task.folder(out), time.monotonic()
    training = train(task.settings, folder, splits=splits)
    seconds = None if training.resumed else round(time.monotonic() - began, 1)
    judged = judge(training.run, splits, plan.stage, task.settings.device)
    names = {"recipe": task.recipe, "variant": task.variant, "stage": plan.stage, "seed": task.seed}
    return {**names, "updates": task.updates, "seconds": seconds, **judged._asdict()}


_last: dict[str, Splits] = {}


def _loaded(settings: Settings) -> Splits:
    """Return the data of a run; that of the last one where it is the same."""
    of_texts = {"model"} if settings.tokens is not None else set()
    key = repr(settings.model_dump(include={*_OF_DATA, *of_texts}))
    if key not in _last:
        _last.clear()
        _last[key] = load_splits(settings, max_broken=settings.max_broken)
    return _last[key]


_OF_DATA = (
    *("data", "data_root", "tokens", "image_size", "augment", "mean", "std", "interpolation", "crop", "smallest_crop"),
    *("calibration_fraction", "test_fraction", "imbalance", "split_seed", "max_broken"),
)
"""Settings that :func:`load_splits` reads."""


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch use so many threads within this context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
