import pytest
from test_cli import assert_refused, call


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("seeds: []\nvariants: [uniform, meta-weighted]", "seeds: "),
        ("seeds: [0]\nvariants: [uniform, unifrom]", "unknown variant 'unifrom'; did you mean 'uniform'?"),
    ],
)
def test_a_wrong_plan_is_refused_before_the_first_run(lines, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    plan = tmp_path / "plan.yaml"
    plan.write_text(f"stage: select\nrecipes: [digits]\n{lines}\n")
    code, _, errors = call(capsys, "study", plan)
    assert_refused(code, errors, message)
    assert list(tmp_path.iterdir()) == [plan]
