from pathlib import Path

import pytest

from exitwise.errors import UserError
from exitwise.studying.plan import read_plan

GOOD = {"stage": "select", "recipes": ["digits"], "seeds": [0, 1], "variants": ["uniform", "meta-weighted-shared"]}


def plan(**changes):
    return read_plan({**GOOD, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": ["uniform", "unifrom"]}, "the study: unknown variant 'unifrom'; did you mean 'uniform'"),
        ({"variants": {"uniform": {}}}, "variants: .* at least 2"),
        ({"baseline": "plain"}, "unknown baseline 'plain'"),
        ({"seeds": []}, "seeds: .* at least 1"),
        ({"seeds": [1, 1]}, "expected different seeds; got 1, 1"),
        ({"seeds": None}, "seeds: .* valid list"),
        ({"stage": "test"}, "stage: .*'select' or 'confirm'; got 'test'"),
        ({"recipes": ["digit"]}, "recipe digit, variant uniform: unknown recipe 'digit'; did you mean 'digits'"),
        ({"recipes": []}, "recipes: .* at least 1"),
        ({"variants": {"uniform": {}, "b": {"lr": -1}}}, "recipe digits, variant b: setting lr: .*; got -1"),
        (
            {"variants": {"uniform": {}, "b": {"epsilon": 1}}},
            "variant b: epsilon is an option of .*; method is uniform",
        ),
        ({"variants": {"uniform": {}, "b": {}}}, "expected variants that differ in a setting; uniform and b do not"),
        ({"variants": {"uniform": {}, "a b": {"lr": 1}, "a_b": {"lr": 2}}}, "names that differ in a letter or digit"),
        ({"settings": {"seed": 3}}, "seed is given by seeds; got seed 3 too"),
        ({"splits": "drawn", "settings": {"split_seed": 3}}, "split_seed is given by seeds"),
        ({"rule": {"recipes": 2}}, "rule: expected at most 1 recipes; got 2"),
        ({"equal": ["updates"]}, "rule: expected equal among updates; got time"),
        ({"recipes": {"digits": {"data": "$NOT_THERE/x"}}}, r"expected the variables of '\$NOT_THERE/x'"),
        (
            {
                "recipes": {"finetune": {"data": "."}},
                "variants": {"uniform": {}, "b": {"regime": "mixed", "backbone_epochs": 1}},
            },
            "expected other regimes than mixed at equal time",
        ),
        ({"jobs": 2}, "jobs: extra inputs are not permitted"),
    ],
)
def test_what_is_wrong_with_a_plan_is_said_in_a_line(changes, message):
    with pytest.raises(UserError, match=message) as error:
        plan(**changes)
    assert "\n" not in str(error.value)


def test_the_recorded_plan_can_be_carried_out():
    assert read_plan(Path(__file__).parents[2] / "benchmarks" / "study.yaml").stage == "select"


def test_a_missing_or_empty_file_is_said_in_a_line(tmp_path):
    with pytest.raises(UserError, match="expected a YAML file of a study; found none"):
        read_plan(tmp_path / "none.yaml")
    (tmp_path / "empty.yaml").touch()
    with pytest.raises(UserError, match=r"empty\.yaml: stage: field required"):
        read_plan(tmp_path / "empty.yaml")


def test_a_run_has_the_settings_of_all_layers(monkeypatch):
    monkeypatch.setenv("SOMEWHERE", "/data")
    made = plan(
        recipes={"mine": {"recipe": "digits", "lr": 0.3, "data_root": "$SOMEWHERE/x"}},
        settings={"epochs": 2, "lr": 0.2},
        variants={"uniform": {}, "b": {"lr": 0.4}},
        splits="drawn",
    )
    runs = {name: made.run("mine", name, 5) for name in made.variants}
    assert [(run.lr, run.epochs, run.seed, run.split_seed) for run in runs.values()] == [(0.3, 2, 5, 5), (0.4, 2, 5, 5)]
    assert runs["b"].data_root == "/data/x"
