import pytest

from exitwise.errors import UserError
from exitwise.reporting.learning import MOST_EPOCHS, learning
from exitwise.runs.records.metrics import METRICS, read_metrics, write_metrics


def row(epoch):
    parts = {f"{part}_accuracy_{k}": epoch / 1000 + k / 10 for part in ("train", "calibration") for k in (1, 2)}
    return {"epoch": epoch, "loss": 1.0, **parts}


@pytest.mark.parametrize(("epochs", "shown"), [(0, 0), (1, 1), (7, 7), (300, MOST_EPOCHS)])
def test_some_epochs_are_shown(tmp_path, epochs, shown):
    write_metrics(tmp_path, [row(epoch) for epoch in range(1, epochs + 1)])
    found = learning(read_metrics(tmp_path), 2)
    assert len(found) == shown
    if shown:
        assert (found[0].epoch, found[-1].epoch) == (1, epochs)
        assert found[-1].calibration == pytest.approx([epochs / 1000 + 0.1, epochs / 1000 + 0.2])
    assert learning(read_metrics(tmp_path), 3) == []


def test_a_damaged_table_is_refused(tmp_path):
    (tmp_path / METRICS).write_text("epoch,loss\n1,high\n")
    with pytest.raises(UserError, match=r"expected numbers by epoch in .*metrics.csv; could not convert"):
        read_metrics(tmp_path)
