"""The figures of a report against slow loops over the same network's outputs, and what is refused."""

import json
import re
import shlex
import shutil

import pytest
import torch

import exitwise as ew
from exitwise.errors import UserError
from exitwise.evaluation.outputs import collect_logits
from exitwise.exiting.temperatures import fit_temperatures
from exitwise.reporting.gather import gather
from exitwise.reporting.one_run import spread_out
from exitwise.runs.folder import Run
from exitwise.runs.records.bench import BENCH, Bench, Network, Row
from hostile_runs import SECONDS


def probabilities(run, split, temperatures=None):
    """Softmax outputs [N][K][C] as lists, and targets."""
    logits, targets = map(torch.from_numpy, collect_logits(run.model(), split.batches(64)))
    if temperatures is not None:
        logits = logits / torch.tensor(temperatures)[:, None]
    return logits.softmax(-1).tolist(), targets.tolist()


def leave(outputs, thresholds):
    """Exit, class and confidence of one image, by the rule in words."""
    for exit, classes in enumerate(outputs):
        confidence = max(classes)
        if exit == len(outputs) - 1 or (thresholds[exit] is not None and confidence >= thresholds[exit]):
            return exit, classes.index(confidence), confidence
    raise AssertionError


def right_at(exit, outputs, targets):
    """Whether each image is right where all leave at an exit."""
    return [each[exit].index(max(each[exit])) == target for each, target in zip(outputs, targets, strict=True)]


@pytest.mark.parametrize("number", [0, 1])
def test_figures_under_the_calibrated_policy(report, runs, number):
    figures, run = report.runs[number], Run([runs.uniform, runs.weighted][number])
    policy = run.read_calibration().policy
    outputs, targets = probabilities(run, runs.splits.test, policy.measure.temperatures)
    left = [leave(each, policy.thresholds) for each in outputs]
    n = len(targets)
    shares = [sum(exit == k for exit, _, _ in left) / n for k in range(4)]
    right = [label == target for (_, label, _), target in zip(left, targets, strict=True)]
    assert figures.calibrated.point.shares == pytest.approx(shares)
    assert figures.calibrated.point.accuracy == pytest.approx(sum(right) / n)
    macs = [each.macs for each in figures.exits]
    assert figures.calibrated.point.macs == pytest.approx(sum(s * m for s, m in zip(shares, macs, strict=True)))
    assert figures.calibrated.seconds == pytest.approx(sum(s * t for s, t in zip(shares, SECONDS, strict=True)))
    full = right_at(figures.calibration.outcome.yardstick.exit, outputs, targets)
    pairs = list(zip(right, full, strict=True))
    assert figures.calibrated.paired == (pairs.count((True, False)), pairs.count((False, True)), n)
    losses = [row.paired.difference for row in figures.classes]
    assert losses == sorted(losses)
    for row in figures.classes:
        label = runs.splits.classes.index(row.name)
        mine = [i for i in range(n) if targets[i] == label]
        assert (row.name, row.size) == (runs.splits.classes[label], len(mine))
        assert row.accuracy == pytest.approx(sum(right[i] for i in mine) / len(mine))
        assert row.full == pytest.approx(sum(full[i] for i in mine) / len(mine))
        assert row.shares == pytest.approx([sum(left[i][0] == k for i in mine) / len(mine) for k in range(4)])
        ordered = sorted(mine, key=lambda i: (left[i][0], -left[i][2]))
        names = [runs.splits.test.name(i) for i in ordered]
        assert [shot.name for shot in row.easiest] == names[:3]
        assert [shot.name for shot in row.hardest] == names[:-4:-1]


def test_exits_are_read_before_and_after_temperatures_of_the_calibration_images(report, runs):
    run = Run(runs.weighted)
    temperatures = fit_temperatures(*collect_logits(run.model(), runs.splits.calibration.batches(64)))
    for part, scale in (("before", None), ("after", temperatures)):
        outputs, targets = probabilities(run, runs.splits.test, scale)
        for k, exit in enumerate(report.runs[1].exits):
            diagram = getattr(exit, part)
            mean = sum(each.size * each.confidence for each in diagram.bins) / len(targets)
            assert mean == pytest.approx(sum(max(each[k]) for each in outputs) / len(targets), abs=1e-6)
            right = sum(each[k].index(max(each[k])) == target for each, target in zip(outputs, targets, strict=True))
            assert sum(each.size * each.accuracy for each in diagram.bins) == pytest.approx(right)
            assert exit.accuracy == pytest.approx(right / len(targets))
    assert [exit.temperature for exit in report.runs[1].exits] == pytest.approx(temperatures)
    assert [exit.seconds for exit in report.runs[1].exits] == list(SECONDS)


def test_budgets_are_those_on_record(report, runs):
    recorded = json.loads((runs.uniform / "evaluation.json").read_text())["budgets"]
    recorded.sort(key=lambda point: point["test"]["macs"])
    table = json.loads((runs.uniform / "calibration.json").read_text())["table"]
    assert {point["budget"]: point["thresholds"] for point in recorded} == {
        line["budget"]: line["thresholds"] for line in table
    }
    for budget, point in zip(report.runs[0].budgets, recorded, strict=True):
        assert (budget.share, list(budget.thresholds)) == (point["budget"], point["thresholds"])
        assert (budget.point.accuracy, budget.point.macs) == (point["test"]["accuracy"], point["test"]["macs"])
        assert budget.seconds == pytest.approx(
            sum(s * t for s, t in zip(point["test"]["shares"], SECONDS, strict=True))
        )


def test_a_budget_is_paired_with_what_losses_count_from_and_says_what_to_type(report, runs):
    run = report.runs[1]
    outputs, targets = probabilities(Run(runs.weighted), runs.splits.test, run.calibration.policy.measure.temperatures)
    full = right_at(run.calibration.outcome.yardstick.exit, outputs, targets)
    for budget in run.budgets[::6]:
        right = [leave(each, budget.thresholds)[1] == target for each, target in zip(outputs, targets, strict=True)]
        pairs = list(zip(right, full, strict=True))
        assert budget.paired == (pairs.count((True, False)), pairs.count((False, True)), len(pairs))
        words = shlex.split(budget.command)
        assert words[:4] == ["exitwise", "calibrate", str(runs.weighted), "--budget"]
        assert 0 <= float(words[4]) - budget.share < 1e-4
        assert words[5:] == ["--temperature"]


def test_the_cheapest_within_a_point_is_what_its_command_gives(report, runs, copied):
    chosen = report.runs[1].cheapest
    assert shlex.split(chosen.budget.command)[3:] == ["--max-accuracy-drop", "0.01", "--temperature"]
    found = ew.calibrate(copied, max_accuracy_drop=0.01, temperature=True, device="cpu", splits=runs.splits)
    tested = ew.evaluate(copied, device="cpu", splits=runs.splits)
    assert chosen.budget.thresholds == found.policy.thresholds
    assert chosen.budget.point == tested.calibrated
    assert untimed(chosen.sentence) in tested.lines
    assert gather([copied], "cpu").runs[0].cheapest is None


def untimed(line):
    return re.sub(r" of MACs, \d+ % of the time;", " of MACs;", line)


def test_the_answer_is_that_of_evaluate(report, runs):
    for run, path in zip(report.runs, (runs.uniform, runs.weighted), strict=True):
        assert [untimed(line) for line in run.lines] == Run(path).read_evaluation().lines != []
        mean = sum(share * each for share, each in zip(run.calibrated.point.shares, SECONDS, strict=True))
        assert f" of MACs, {100 * mean / SECONDS[-1]:.0f} % of the time; " in " ".join(run.lines)


def test_rivals_are_networks_of_a_bench_of_the_same_weights(runs, copied):
    evaluation = Run(copied).read_evaluation()

    def rivals(full):
        def row(name, kind, batch, accuracy, macs=5e4):
            return Row(Network(name, kind), "eager", batch, 0.003 * batch, 0.0, 0.0, 0.0, accuracy, macs)

        rows = [
            row("full network", "full", 1, full, 2e5),
            row("exit 1 alone", "static", 1, 0.8),
            row("runs/<b>small", "static", 8, 0.7),
            row("runs/<b>small", "static", 1, 0.7),
            row("other.bundle", "static", 8, 0.6),
            row("resnet18", "static", 1, None),
        ]
        BENCH.write(copied, Bench(rows, {}, {}))
        return gather([copied], "cpu").runs[0].rivals

    assert rivals(evaluation.anytime[-1]) == [
        ("runs/<b>small", 0.7, 5e4, 0.003),
        ("other.bundle", 0.6, 5e4, None),
    ]
    assert rivals(evaluation.anytime[-1] - 0.1) == []


def test_lines_weights_and_names(report, runs):
    labels = [line.label for line in report.comparisons]
    assert labels == [
        "uniform, meta_interval 1, max_iterations unset",
        "meta-weighted, meta_interval 4, max_iterations 10",
    ]
    assert [line.runs for line in report.comparisons] == [[0], [1]]
    assert [run.name for run in report.runs] == ["uniform", "<b>weighted"]
    line = report.comparisons[0].seconds
    assert line.costs == sorted(budget.seconds for budget in report.runs[0].budgets)
    rows = json.loads((runs.weighted / "weights.json").read_text())["epochs"]
    assert report.runs[1].weights == rows
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(0 < len(row["losses"]) <= 32 for row in rows)


def test_some_epochs_stand_for_many():
    rows = [{"epoch": i} for i in range(1, 301)]
    assert [row["epoch"] for row in spread_out(rows)] == [1, 76, 151, 225, 300]
    assert spread_out(rows[:3]) == rows[:3]
    assert spread_out([]) == []


def test_a_run_without_a_record_of_weights_is_shown(copied):
    (copied / "weights.json").unlink()
    assert gather([copied], "cpu").runs[0].weights == []


def rewrite(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def calibrated_elsewhere(run):
    rewrite(run / "evaluation.json", lambda content: content.update(checkpoint="best-00000001"))


def evaluated_before_that_was_recorded(run):
    rewrite(run / "evaluation.json", lambda content: content.pop("checkpoint"))


BAD = {
    "not calibrated": (
        lambda run: (run / "calibration.json").unlink(),
        r"expected a calibrated run at .*; run `exitwise calibrate .*copy --budget 0.5` first",
    ),
    "not evaluated": (
        lambda run: (run / "evaluation.json").unlink(),
        r"expected an evaluated run at .*copy; run `exitwise evaluate .*copy` first",
    ),
    "another checkpoint": (calibrated_elsewhere, r"was made for best-00000001, .*run `exitwise evaluate .*copy` again"),
    "an old record": (evaluated_before_that_was_recorded, r"does not say for which checkpoint .* `exitwise evaluate"),
    "calibrated since": (
        lambda run: rewrite(run / "calibration.json", lambda content: content["table"].pop()),
        r"expected test results of the calibration of .*copy; it was .* since: run `exitwise evaluate .*copy` again",
    ),
    "a damaged record": (
        lambda run: rewrite(run / "evaluation.json", lambda content: content["budgets"][0].pop("test")),
        r"expected test results in .*evaluation.json; KeyError\('test'\)",
    ),
    "a list": (lambda run: (run / "evaluation.json").write_text("[]"), "expected test results in .*evaluation.json"),
    "damaged weights": (
        lambda run: (run / "weights.json").write_text('{"epochs": [{"epoch": 1}]}'),
        r"expected epochs with their losses and weights in .*weights.json",
    ),
    "no run": (lambda run: (run / "config.yaml").unlink(), "expected a run folder with config.yaml at .*copy"),
    "other classes": (
        lambda run: rewrite(run / "data.json", lambda content: content["classes"].append("eleven")),
        r"expected runs of the same classes; uniform has 10, copy has others \(11\)",
    ),
    "other images": (
        lambda run: rewrite(run / "data.json", lambda content: content["sha256"].update(test="0")),
        "expected runs of the same images, split in the same way; uniform and copy differ",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_shown_is_refused(runs, copied, name):
    spoil, message = BAD[name]
    spoil(copied)
    with pytest.raises(UserError, match=message) as refusal:
        gather([runs.uniform, copied], "cpu")
    assert "\n" not in str(refusal.value)


def test_no_runs_and_a_run_twice_are_refused(runs, copied):
    with pytest.raises(UserError, match=r"<b>weighted and copy have the same \(seed 0\)"):
        gather([runs.weighted, copied])
    with pytest.raises(UserError, match="expected one or more run folders; got none"):
        gather([])
    with pytest.raises(UserError, match=r"expected different run folders; got .*uniform more than once"):
        gather([runs.uniform, runs.uniform / ".." / "uniform"])


def test_runs_of_one_name_are_told_apart_by_their_path(runs, tmp_path):
    other = shutil.copytree(runs.uniform, tmp_path / "elsewhere" / "uniform")
    settings = (other / "config.yaml").read_text().replace("\nseed: 0", "\nseed: 1")
    (other / "config.yaml").write_text(settings)
    report = gather([runs.uniform, other], "cpu")
    assert [run.name for run in report.runs] == [str(runs.uniform), str(other)]
    (line,) = report.comparisons
    assert (line.label, line.runs) == ("uniform", [0, 1])
    assert line.macs.half_widths == pytest.approx([0] * 50, abs=1e-12)  # one run and its copy


def test_evaluation_is_read_as_it_was(runs):
    run = Run(runs.uniform)
    read = run.read_evaluation()
    made = ew.evaluate(runs.uniform, device="cpu", splits=runs.splits)
    assert read == made
