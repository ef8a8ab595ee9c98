"""Tables of texts: what a network sees of them, batches alike in length, and what is refused."""

import csv
import re

import pytest
import torch

import exitwise as ew
from exitwise.data import TrainingBatches
from exitwise.data.sampling import alike
from exitwise.doctor.data import examine_data
from exitwise.errors import DataError, UserError
from exitwise.runs.build import load_splits
from exitwise.settings.compose import compose
from exitwise.training.trainer import Silent
from tiny_texts import table, texts_of, tiny_network


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return tiny_network(tmp_path_factory.mktemp("texts") / "network", positions=16)


def settings(network, path, **flags):
    flags = {"tokens": 10, "batch_size": 16, "pretrained": "none", "exits": 2, "refit_heads": False} | flags
    return compose(None, flags={"data": str(path), "model": f"hf/{network}", "device": "cpu", **flags})


def test_batches_are_what_the_tokenizer_of_the_network_makes(network, tmp_path):
    transformers = pytest.importorskip("transformers")
    rows = texts_of(60)
    splits = load_splits(settings(network, table(tmp_path / "a.csv", rows)))
    tokenizer = transformers.AutoTokenizer.from_pretrained(network)
    read = 0
    for part in splits[:3]:
        for inputs, targets in part.batches(8):
            lines = [int(part.name(k).removeprefix("line ")) for k in range(read, read + len(targets))]
            given = [rows[line - 2] for line in lines]
            wanted = tokenizer([text for text, _ in given], padding=True, truncation=True, max_length=10)
            for name in ("input_ids", "attention_mask"):
                assert inputs[name].tolist() == wanted[name]
            assert [splits.classes[k] for k in targets] == [label for _, label in given]
            read += len(targets)
        read = 0


def test_a_batch_holds_texts_of_like_length(network, tmp_path):
    splits = load_splits(settings(network, table(tmp_path / "a.csv", texts_of(200))))
    loaded = TrainingBatches(splits.train, 16, seed=3)
    widths = [inputs["attention_mask"].sum(1) for inputs, _ in loaded]
    lengths = torch.cat(widths)
    assert lengths.sort().values.tolist() == splits.train.source.lengths[splits.train.indices].sort().values.tolist()
    assert sum(int(each.max() - each.min()) for each in widths[:-1]) < len(widths) * 3
    loaded.sampler.epoch = 1
    again = [inputs["attention_mask"].sum(1) for inputs, _ in loaded]
    assert [each.tolist() for each in again] != [each.tolist() for each in widths]
    loaded.sampler.start = 2
    rest = [inputs["attention_mask"].sum(1) for inputs, _ in loaded]
    assert [each.tolist() for each in rest] == [each.tolist() for each in again[2:]]


def test_halves_of_a_batch_are_as_long_as_one_another():
    """Else the second half of each batch would have the long texts."""
    lengths = torch.arange(3200)
    order = alike(lengths, 32, torch.Generator().manual_seed(0))
    assert order.sort().values.tolist() == lengths.tolist()
    first, second = (order.view(100, 2, 16)[:, half].float().mean() for half in (0, 1))
    assert abs(first - second) < 10


def test_equal_texts_are_read_once_and_groups_stay_together(network, tmp_path):
    rows = [(text, label, f"{label}{k // 8}") for k, (text, label) in enumerate(texts_of(80))]
    path = table(tmp_path / "a.csv", [*rows, *rows[:7]], ("Text", "label", "group"))
    with pytest.warns(ew.ExitwiseWarning, match="7 of 87 texts of .* are to the network as earlier ones"):
        splits = load_splits(settings(network, path))
    assert sum(len(part) for part in splits[:3]) <= 80
    sides = [set(part.readable_groups()) for part in splits[:3]]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]


def test_parquet_and_texts_of_several_lines(network, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [(text.replace(" ", "\n", 1), label) for text, label in texts_of(60)]
    columns = {"sentence": [text for text, _ in rows], "label": [label for _, label in rows]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    of_table = load_splits(settings(network, table(tmp_path / "a.csv", rows)))
    of_parquet = load_splits(settings(network, tmp_path / "a.parquet"))
    for one, other in zip(of_table[:3], of_parquet[:3], strict=True):
        assert [one.source.stamp(int(k)) for k in one.indices] == [other.source.stamp(int(k)) for k in other.indices]


def test_a_long_text_is_cut_and_counted(network, tmp_path):
    rows = [(" ".join([text] * 2000), label) for text, label in texts_of(60)]
    assert max(len(text) for text, _ in rows) > csv.field_size_limit() // 2
    splits = load_splits(
        settings(network, table(tmp_path / "a.csv", [*rows, *texts_of(40, seed=5)], ("text", "label")))
    )
    loaded = TrainingBatches(splits.train, 16, seed=0)
    assert "tokens (" in str(loaded)
    assert "of them longer, and cut), alike in length" in str(loaded)
    assert all(inputs["input_ids"].shape[1] <= 10 for inputs, _ in loaded)


GOOD = texts_of(60)
BAD = {
    "an empty text": ([*GOOD, (" ", "kind")], {}, "expected a value for text in line 62 of .*; it is empty"),
    "labels of two kinds": ([*GOOD, ("a b", "3")], {}, "expected labels of one kind in .*; got the number 3"),
    "no labels": ([(text,) for text, _ in GOOD], {}, "expected a column label or class or"),
    "not UTF-8": ([*GOOD, ("a \udce9", "kind")], {}, "expected texts in UTF-8 in .*; line 62 has others"),
    "more tokens than positions": (GOOD, {"tokens": 17}, "at most 16, as many as .* has positions; got 17"),
    "an image's augmentation": (GOOD, {"augment": "crop"}, "augment is for images; the data are texts"),
    "a network of images": (GOOD, {"model": "timm/resnet18"}, "are for hf/NAME, a network of texts; got timm"),
    "a network without exits": (GOOD, {"model": "msdnet_small"}, "are for hf/NAME, a network of texts; got msdnet"),
    "too few": (GOOD[:4], {}, "expected at least 3 .* of class"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_trained_on_is_one_line_and_writes_nothing(case, network, tmp_path):
    rows, flags, message = BAD[case]
    header = ("text", "label")[: len(rows[0])]
    path = tmp_path / "a.csv"
    content = "\n".join(",".join(row) for row in [header, *rows])
    path.write_text(content + "\n", errors="surrogateescape")
    with pytest.raises(UserError, match=message) as told:
        ew.train(settings(network, path, **flags), tmp_path / "run", Silent())
    assert len(str(told.value).splitlines()) == 1
    assert not (tmp_path / "run" / "config.yaml").exists()
    if not flags.keys() & {"augment", "model"}:  # what settings refuse, they refuse before anything is looked at
        problems = [
            each.text for each in examine_data(settings(network, path, **flags)).findings if each.level == "problem"
        ]
        assert any(re.search(message, text) for text in problems)


def test_doctor_says_what_is_odd_about_texts(network, tmp_path):
    rows = [(text, label) for k, (text, label) in enumerate(texts_of(80)) if label == "kind" or k < 6]
    (text, _), (other, _), (third, _) = rows[-3:]
    rows += [(text, "kind"), (other.upper(), "kind"), (third, "cheap"), ("the " * 30, "kind")]
    found = examine_data(settings(network, table(tmp_path / "a.csv", rows), tokens=8))
    said = " | ".join(each.text for each in found.findings)
    last = len(rows) + 1
    for part in (
        "2 classes; texts: ",
        "class 'cheap' has 4 readable texts",
        "class 'cheap' has 4 texts to 43 of 'kind': a network can be right without it",
        f"2 texts are there more than once: line {last - 6} = line {last - 3}; line {last - 4} = line {last - 1}",
        f"1 texts are in more than one class: line {last - 4} = line {last - 1}",
        f"1 texts say the same as another one that may judge them: line {last - 5} = line {last - 2}",
        "are longer than tokens 8, and cut",
    ):
        assert part in said, part
    whole = table(tmp_path / "b.csv", texts_of(80))
    assert [each.level for each in examine_data(settings(network, whole, tokens=16)).findings] == ["fine", "fine"]


def test_texts_for_a_network_of_images_are_refused(tmp_path):
    path = table(tmp_path / "a.csv", GOOD)
    with pytest.raises(DataError, match="for `exitwise train --model hf/NAME"):
        load_splits(compose("images", flags={"data": str(path)}))
    with pytest.raises(UserError, match="are read from a table; got digits"):
        load_splits(compose("texts", flags={"data": "digits"}))
