"""What advice looks like in a narrow terminal."""

from rich.console import Console

from exitwise.advising.advice import Advice, Suggestion
from exitwise.advising.belief import Interval
from exitwise.advising.times import Time


def test_its_table_fits_into_80_columns_with_names_that_can_be_read():
    def suggest(name, early, within, basis):
        time, accuracy = Time(0.0147, 0.0144, 0.0155), Interval(0.84, 0.68, 0.94)
        return Suggestion(name, early, 224, time, "onnx", 1.77e9, accuracy, Interval(0, -0.1, 0.1), within, basis, True)

    longest = "hgnetv2_b2.ssld_stage2_ft_in1k"
    options = [suggest("resnet18", True, True, "probe, 3 exits"), suggest(longest, False, False, "ImageNet 82.9 %")]
    console = Console(width=80)
    with console.capture() as captured:
        console.print(Advice(options, [], {}, "at most 10 ms an image", 3000))
    shown = captured.get()
    assert all(
        word in shown for word in ("resnet18 with exits", longest[:16], "(14.4-15.5)", "84 (68-94)", "undecided")
    )
    assert max(map(len, shown.splitlines())) <= 80
