"""Exits placed by times that are injected: how long a block takes is what the test says."""

import pytest
import torch
from torch import nn

import exitwise as ew
from exitwise.errors import ExitwiseWarning, UserError
from exitwise.kernels.timing import BusyWarning

SHAPE = (3, 8, 8)


class Blocks(nn.Module):
    """Eight equal blocks, so that each has an eighth of the multiply-accumulates."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(8)))
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(self.blocks(x).mean((2, 3)))


@pytest.fixture
def clock(monkeypatch):
    """Let each part take as long as the test says; what is timed runs once."""

    def set_to(bodies, heads, counts=None):
        def timed(functions, rounds):
            for function in functions.values():
                function()
            ends = [k for part, k in functions if part == "body"]
            # cut after each convolution and after each ReLU: the time of a block lies in its convolution
            longest = {k: bodies[k // 2] if k % 2 == 0 and k // 2 < len(bodies) else 0.0 for k in ends}
            own = {k: heads[k // 2] if k // 2 < len(heads) else 0.0 for k in ends}
            return {(part, k): longest[k] if part == "body" else own[k] for part, k in functions}

        monkeypatch.setattr("exitwise.models.backbones.latency.interleaved_medians", timed)

    return set_to


def placed(exits, **options):
    return [point.name for point in ew.add_exits(Blocks().eval(), exits=exits, input_shape=SHAPE, **options).points]


def test_exits_are_spread_over_the_time_where_that_is_asked_for(clock):
    assert placed(3) == ["blocks.2", "blocks.4"]  # thirds of the multiply-accumulates: 3 and 5 of 8 blocks
    clock([8, 4, 4, 2, 2, 2, 1, 1], [0.01] * 8)
    assert placed(3, place_by="latency") == ["blocks.0", "blocks.2"]  # 8 and 16 of 24
    clock([1, 1, 2, 2, 2, 4, 4, 8], [0.01] * 8)
    assert placed(3, place_by="latency") == ["blocks.4", "blocks.6"]  # 8 and 16 of 24
    assert placed(3) == ["blocks.2", "blocks.4"]


def test_the_time_of_exits_counts(clock):
    """Left after 5 of 10, the first half, where exits take nothing; one that takes 4 itself is left after that."""
    clock([1, 1, 1, 1, 1, 1, 2, 2], [0] * 8)
    assert placed(2, place_by="latency") == ["blocks.4"]
    clock([1, 1, 1, 1, 1, 1, 2, 2], [0, 0, 0, 0, 4, 0, 0, 0])
    assert placed(2, place_by="latency") != ["blocks.4"]


def test_what_is_left_later_than_a_later_exit_is_no_place_for_one(clock):
    clock([4, 1, 1, 1, 1, 1, 1, 2], [9, 9, 9, 0, 9, 9, 9, 0])
    with pytest.raises(UserError, match="expected at most 2 exits, for that many places"):
        placed(4, place_by="latency")
    with pytest.warns(ExitwiseWarning, match="the exit after blocks.3 lies at 5 % of the cost"):
        assert placed(2, place_by="latency") == ["blocks.3"]


def test_costs_stay_what_they_were_and_no_random_number_is_drawn_for_the_measuring(clock):
    clock([1] * 8, [0.001] * 8)
    backbone = Blocks().eval()
    torch.manual_seed(5)
    by_macs = ew.add_exits(backbone, at=["blocks.3"], input_shape=SHAPE)
    torch.manual_seed(5)
    by_latency = ew.add_exits(backbone, exits=2, input_shape=SHAPE, place_by="latency")
    assert [point.name for point in by_latency.points] == ["blocks.3"]
    assert by_latency.points == by_macs.points
    assert by_latency.exit_macs == by_macs.exit_macs
    for ours, theirs in zip(by_latency.parameters(), by_macs.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not backbone.training


def test_real_times_are_taken_where_nothing_is_to_be_placed_and_modes_stay():
    model = ew.add_exits(Blocks(), exits=1, input_shape=SHAPE, place_by="latency")
    assert (model.exits, model.training) == (1, True)


def test_a_busy_machine_is_told(clock, monkeypatch):
    clock([1] * 8, [0.001] * 8)
    monkeypatch.setattr("os.getloadavg", lambda: (99.0, 0.0, 0.0))
    with pytest.warns(BusyWarning, match="load 99.0"):
        placed(2, place_by="latency")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"place_by": "time"}, "place_by must be macs or latency; got 'time'"),
        ({"at": ["blocks.1"], "place_by": "latency"}, "place_by chooses places; got latency with at"),
        ({"skip": False, "place_by": "latency"}, "got latency with skip=False, which saves no time"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        ew.add_exits(Blocks(), input_shape=SHAPE, **options)


def test_a_run_keeps_the_places_that_it_began_with(clock, tmp_path, monkeypatch):
    """Later commands, and the continued run, do not measure again."""
    from exitwise.settings.compose import compose

    monkeypatch.setattr("exitwise.models.create_backbone", lambda name, classes, shape, pretrained: Digits(classes))
    flags = {
        "model": "timm/resnet10t",
        "pretrained": "none",
        "mean": [0.5],
        "std": [0.5],
        "exits": 2,
        "place_by": "latency",
        "epochs": 1,
        "max_iterations": 1,
        "device": "cpu",
    }
    clock([8, 1, 1, 1, 1, 1, 1, 1], [0.01] * 8)
    settings = compose("digits", flags=flags)
    with monkeypatch.context() as patch:
        patch.setattr("exitwise.workflows.train.launched", lambda: (0, 2))
        with pytest.raises(UserError, match="places by latency are measured by one process; got 2"):
            ew.train(settings, tmp_path / "run")
    made = ew.train(settings, tmp_path / "run")
    assert [point.name for point in made.run.model().points] == ["blocks.0"]
    clock([1, 1, 1, 1, 1, 1, 1, 8], [0.01] * 8)
    assert [point.name for point in made.run.model().points] == ["blocks.0"]
    assert ew.train(settings, tmp_path / "run").resumed
    assert made.run.settings.place_by == "latency"


class Digits(Blocks):
    def __init__(self, classes):
        super().__init__()
        self.blocks[0][0] = nn.Conv2d(1, 3, 3, padding=1)
        self.fc = nn.Linear(3, classes)
