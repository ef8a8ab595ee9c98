"""What is printed can be pasted, and steers no terminal."""

from pathlib import Path

from exitwise.shown import pasteable


def test_a_command_that_is_proposed_can_be_pasted():
    assert pasteable("exitwise", "predict", Path("my run (1)"), 0.5) == "exitwise predict 'my run (1)' 0.5"
    assert "\x1b" not in pasteable("x\x1b[31m")
