"""study.json: what a study has found so far. Its first version was written by a benchmark, of one recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from exitwise.shown import Shown
from exitwise.storage.record import Record
from exitwise.studying.comparison import Gain, Pair, Verdict, gains, verdict
from exitwise.studying.plan import Plan

if TYPE_CHECKING:
    from rich.console import RenderableType

STEP = 0.05
"""Times are made equal to this share of the shorter one, so that variants that cost alike share runs."""


class Cost(NamedTuple):
    """A variant's training as long as its recipe says.

    Attributes:
        updates: loaded batches.
        seconds: of an update, at the median; None where it was not measured.
        ratio: of an update, in the baseline's; 1 where it was not measured.
    """

    updates: int
    seconds: float | None = None
    ratio: float = 1.0


Costs = Mapping[str, Mapping[str, Cost]]
"""By recipe and variant."""


@dataclass(frozen=True)
class Study(Shown):
    """A study, finished or not.

    Attributes:
        plan: as it was read. What it no longer names stays in the record, but is not compared.
        settings: of a run with the first seed, by recipe and variant.
        costs: of what was measured so far.
        runs: finished ones: ``recipe``, ``variant``, ``stage``, ``seed``, ``updates`` (loaded batches), ``seconds``
            (None of one that was interrupted), ``exit_macs``, ``exits`` (accuracy of each), ``curve`` and
            ``plain_curve`` ([p, MACs, accuracy], with and without temperatures).
        machine: where costs were measured, and with what.
    """

    plan: Plan
    settings: Mapping[str, Mapping[str, Mapping[str, Any]]]
    costs: Costs
    runs: Sequence[Mapping[str, Any]]
    machine: Mapping[str, Any]

    @cached_property
    def pairs(self) -> list[Pair]:
        """What is compared, of the recipes whose costs are known."""
        return [pair for recipe in self.recipes for name in self.plan.others for pair in self._pairs(recipe, name)]

    @property
    def recipes(self) -> list[str]:
        """The plan's recipes whose costs are known."""
        return [recipe for recipe in self.plan.recipes if recipe in self.costs]

    def _pairs(self, recipe: str, variant: str) -> list[Pair]:
        costs = self.costs[recipe]
        if not {variant, self.plan.baseline} <= costs.keys():
            return []
        mine, base = costs[variant], costs[self.plan.baseline]
        longer = mine.ratio * mine.updates / base.updates
        found = {
            "updates": (mine.updates, base.updates),
            "time": (mine.updates, _times(base.updates, longer))
            if longer > 1
            else (_times(mine.updates, 1 / longer), base.updates),
        }
        return [Pair(recipe, variant, equal, *found[equal]) for equal in self.plan.equal]

    @cached_property
    def lengths(self) -> list[tuple[str, str, int]]:
        """Recipe, variant and updates of all runs, each to be made with each seed."""
        baseline = self.plan.baseline
        mine = [(pair.recipe, pair.variant, pair.updates) for pair in self.pairs]
        theirs = [(pair.recipe, baseline, pair.baseline_updates) for pair in self.pairs]
        return list(dict.fromkeys([*theirs, *mine]))

    @cached_property
    def gains(self) -> list[Gain]:
        """What each variant gains at each place."""
        return gains(self.pairs, self.runs, self.plan.baseline)

    @cached_property
    def verdict(self) -> Verdict:
        """Which variant to use, by the plan's rule."""
        return verdict(self.plan, self.gains)

    @property
    def missing(self) -> int:
        """How many runs are to go, where costs are known."""
        done = {(run["recipe"], run["variant"], run["updates"], run["seed"]) for run in self.runs}
        return sum((*length, seed) not in done for length in self.lengths for seed in self.plan.seeds)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table

        tables = []
        for recipe in self.recipes:
            for equal in self.plan.equal:
                rows = [
                    [gain for gain in self.gains if gain.pair == pair]
                    for pair in self.pairs
                    if (pair.recipe, pair.equal) == (recipe, equal)
                ]
                table = Table(title=f"{recipe}, equal {equal}: points of accuracy over {self.plan.baseline}")
                table.add_column("variant", no_wrap=True)
                for name in ("n", "cost", *(gain.place for gain in next(filter(None, rows), []))):
                    table.add_column(name, justify="right")
                for row in filter(None, rows):
                    pair = row[0].pair
                    cost = f"{self.costs[recipe][pair.variant].ratio:.2f}"
                    table.add_row(pair.variant, str(row[0].seeds), cost, *map(_cell, row))
                tables.append(table)
        judged = "calibration images" if self.plan.stage == "select" else "test images"
        note = (
            f"On {judged}; n: seeds; cost: of an update, in {self.plan.baseline}'s. ±: 95 % intervals over paired "
            "seeds; *: chance below 5 % after Holm's correction."
        )
        left = [f"{self.missing} runs are to go."] if self.missing > 0 else []
        return Group(*tables, " ".join([note, *left]), self.verdict.sentence)


def _cell(gain: Gain) -> str:
    half = "" if gain.half_width is None else f"±{gain.half_width:.1f}"
    return f"{gain.mean:+.1f}{half}{'*' if gain.sure else ''}"


def _times(updates: int, factor: float) -> int:
    """Return that many times the updates, the factor rounded."""
    return round(updates * round(factor / STEP) * STEP)


def _encode(study: Study) -> dict[str, Any]:
    return {
        "plan": study.plan.model_dump(),
        "settings": study.settings,
        "costs": {
            recipe: {name: cost._asdict() for name, cost in each.items()} for recipe, each in study.costs.items()
        },
        "runs": list(study.runs),
        "gains": [
            {**gain.pair._asdict(), "place": gain.place, "mean": gain.mean, "half_width": gain.half_width}
            | {"seeds": gain.seeds, "p": gain.p}
            for gain in study.gains
        ],
        "verdict": study.verdict._asdict(),
        "machine": study.machine,
    }


def _decode(content: dict[str, Any], version: int) -> Study:
    if version == 1:
        return _first(content)
    costs = {recipe: {name: Cost(**cost) for name, cost in each.items()} for recipe, each in content["costs"].items()}
    plan = Plan.model_validate(content["plan"])
    return Study(plan, content["settings"], costs, content["runs"], content["machine"])


FIRST_RECIPE = "cifar10_narrow"


def _first(content: dict[str, Any]) -> Study:
    """Return a study of the first version, which compared at equal updates alone, on test images."""
    runs = content["runs"]
    variants = {run["variant"]: {"method": run["settings"]["method"]} for run in runs}
    updates = {run["variant"]: run["settings"]["max_iterations"] for run in runs}
    plan = Plan.model_validate(
        {
            "stage": "confirm",
            "recipes": {FIRST_RECIPE: {}},
            "variants": variants,
            "seeds": sorted({run["seed"] for run in runs}),
            "equal": ["updates"],
            "rule": {"equal": "updates"},
        }
    )
    return Study(
        plan,
        {FIRST_RECIPE: {run["variant"]: run["settings"] for run in runs}},
        {FIRST_RECIPE: {name: Cost(updates[name]) for name in variants}},
        [
            {
                **{key: run[key] for key in ("variant", "seed", "seconds", "exit_macs")},
                "recipe": FIRST_RECIPE,
                "stage": "confirm",
                "updates": updates[run["variant"]],
                "exits": run["exit_accuracy"],
                "curve": run["curve"]["test"],
                "plain_curve": run["curve"]["test"],
            }
            for run in runs
        ],
        runs[0]["machine"],
    )


STUDY = Record("study.json", "exitwise/study", _encode, _decode, expected="a study", version=2)
