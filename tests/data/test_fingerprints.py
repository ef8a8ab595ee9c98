import pytest
import torch

from exitwise.data.fingerprints import fingerprints, noted, unused
from exitwise.errors import DataError


def test_a_fingerprint_depends_on_the_sample_alone():
    images = torch.randn(6, 3, 70, 70)
    whole = fingerprints(images)
    assert len(set(whole)) == 6
    assert fingerprints(images[2:4]) == whole[2:4]
    assert fingerprints(images.contiguous(memory_format=torch.channels_last)) == whole
    assert fingerprints(images.double()) != whole
    assert len(set(fingerprints(images.bfloat16()))) == 6
    assert fingerprints({"x": images, "y": images + 1}) != fingerprints({"x": images, "y": images})


def test_what_fills_up_tokens_does_not_count():
    ids, mask = torch.tensor([[5, 6, 7, 1, 1], [5, 6, 7, 8, 9]]), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    short = {"input_ids": ids[:1, :3], "attention_mask": mask[:1, :3]}
    left = {"input_ids": torch.tensor([[1, 5, 6, 7]]), "attention_mask": torch.tensor([[0, 1, 1, 1]])}
    first, second = fingerprints({"input_ids": ids, "attention_mask": mask})
    assert fingerprints(short) == fingerprints(left) == [first]
    assert first != second


def test_samples_that_equal_one_another_tell_nothing():
    used: set[int] = set()
    answers = torch.tensor([[0.0], [1.0]]).repeat(20, 1)
    list(noted([(answers, torch.zeros(40))], used))
    with pytest.warns(UserWarning, match="40 of 40"):
        list(unused([(answers, torch.zeros(40))], {"fitted on": used}, "loader"))
    with pytest.raises(DataError, match="1 of 1 were"):
        list(unused([(answers[:1], torch.zeros(1))], {"fitted on": used}, "loader"))
