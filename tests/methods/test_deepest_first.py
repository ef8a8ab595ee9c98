import pytest

import exitwise as ew
from exitwise.methods.schedules.deepest_first import DeepestFirst


@pytest.mark.parametrize(
    ("progress", "joined"),
    [(0, [0, 0, 0, 1]), (0.2, [0, 0, 1, 1]), (0.39, [0, 0, 1, 1]), (0.41, [0, 1, 1, 1]), (0.6, [1] * 4)],
)
def test_exits_join_at_equal_intervals(progress, joined):
    schedule = DeepestFirst(ew.create_method("uniform"), joined_by=0.6)
    schedule.begin(0, progress)
    assert schedule.joined(4).tolist() == joined
    assert schedule.joined(1).tolist() == [1]
