"""Inputs of a network: told by an example, repeated, varied, and found in a loader's batches."""

from collections import UserDict

import pytest
import torch

from exitwise.errors import UserError
from exitwise.kernels.inputs import batch_of, example_of, joined, mismatch, taken, varied

LIKE = torch.zeros(1)
IDS = torch.tensor([[5, 7, 9, 3], [5, 8, 0, 0]])
TEXT = {"input_ids": IDS, "attention_mask": (IDS > 0).long()}


def test_a_batch_repeats_the_rows_of_the_example():
    assert torch.equal(batch_of(TEXT, 3, LIKE)["input_ids"], IDS[[0, 1, 0]])
    assert batch_of(torch.ones(1, 4), 2, LIKE.double()).dtype == torch.float64
    assert example_of(None, (3, 8, 8)).shape == (1, 3, 8, 8)


def test_varied_ids_stay_within_the_vocabulary_and_masks_as_they_are():
    batch = varied(TEXT, 50, LIKE)
    assert torch.equal(batch["attention_mask"], batch_of(TEXT, 50, LIKE)["attention_mask"])
    assert set(batch["input_ids"].unique().tolist()) == set(IDS.unique().tolist())
    assert len(batch["input_ids"].unique(dim=0)) > 10
    full = varied({"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}, 3, LIKE)
    assert full["attention_mask"].tolist() == [[1] * 4, [1] * 4, [1, 1, 0, 0]]
    assert float(varied(torch.zeros(1, 9), 9, LIKE).std()) > 0.5


def test_batches_of_other_lengths_are_joined():
    short = {name: value[:, :2] for name, value in TEXT.items()}
    both = joined([short, TEXT])
    assert both["input_ids"].tolist() == [[5, 7, 0, 0], [5, 8, 0, 0], [5, 7, 9, 3], [5, 8, 0, 0]]
    assert both["attention_mask"][0].tolist() == [1, 1, 0, 0]
    assert joined([torch.zeros(2, 3), torch.zeros(1, 3)]).shape == (3, 3)
    assert joined([IDS]) is not None


@pytest.mark.parametrize(
    "batch",
    [
        {**TEXT, "labels": 1},
        UserDict({**TEXT, "labels": 1}),  # as Hugging Face's BatchEncoding is
        (UserDict(TEXT), 1),
        (*TEXT.values(), 1),
    ],
)
def test_inputs_by_name_are_found_in_batches(batch):
    inputs, _ = taken(batch, TEXT)
    assert type(inputs) is dict
    assert all(inputs[name] is TEXT[name] for name in TEXT)
    assert mismatch(inputs, TEXT) is None


def test_a_single_input_is_found_in_batches():
    images = torch.zeros(2, 3, 8, 8)
    for batch in (images, (images, 1), [images], {"pixel_values": images}):
        inputs, _ = taken(batch, images)
        assert inputs is images
    assert taken({"picture": images}, images) is None
    assert taken((), images) is None
    assert taken({"input_ids": IDS}, TEXT) is None


def test_what_is_not_like_the_example_is_said():
    assert mismatch({name: value[:, :3] for name, value in TEXT.items()}, TEXT) is None
    assert mismatch(UserDict(TEXT), TEXT) is None
    for wrong in (
        {**TEXT, "attention_mask": TEXT["attention_mask"][:, :3]},
        {**TEXT, "attention_mask": TEXT["attention_mask"][:1]},
        {**TEXT, "input_ids": IDS.float()},
        {"input_ids": IDS},
        {name: value[:0] for name, value in TEXT.items()},
        IDS,
    ):
        expected, _ = mismatch(wrong, TEXT)
        assert expected == "input_ids torch.int64 (B, tokens), attention_mask torch.int64 (B, tokens)"
    assert mismatch(torch.zeros(2, 3), torch.zeros(1, 4), torch.float32) == (
        "torch.float32 (B, 4)",
        "torch.float32 (2, 3)",
    )


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ([1, 2], "got list"),
        ({}, "got an empty mapping"),
        ({"input_ids": [1, 2]}, "got input_ids list"),
        (torch.tensor(1.0), "got torch.float32"),
        ({"a": torch.zeros(2, 1), "b": torch.zeros(3, 1)}, "as many rows in each example input"),
        (torch.zeros(0, 4), "at least one"),
        (None, "example inputs or an input_shape; got neither"),
    ],
)
def test_what_is_no_example_is_refused(example, message):
    with pytest.raises(UserError, match=message):
        example_of(example, None)
