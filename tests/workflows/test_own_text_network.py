"""Exits on a classifier of texts, from its loaders to thresholds: trained here on a task made up for it."""

import copy

import pytest
import torch
import torch.nn.functional as F

import exitwise as ew
from exitwise.errors import DataError, UserError

transformers = pytest.importorskip("transformers")

WORDS, LONGEST, CLASSES = 60, 24, 3


def batches(first, last, size=50):
    """Texts of 4 to 24 tokens, whose class is which of three words is most frequent, each batch as long as need be."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(4, LONGEST + 1, (1200,), generator=generator)
    labels = torch.randint(CLASSES, (1200,), generator=generator)
    ids = torch.randint(10, WORDS, (1200, LONGEST), generator=generator)
    marked = torch.rand(ids.shape, generator=generator) < 0.3
    ids = torch.where(marked, 3 + labels[:, None], ids)
    ids[:, 0] = 1
    found = []
    for start in range(first, last, size):
        rows = slice(start, min(start + size, last))
        longest = int(lengths[rows].max())
        mask = (torch.arange(longest) < lengths[rows, None]).long()
        parts = {"input_ids": ids[rows, :longest] * mask, "attention_mask": mask, "labels": labels[rows]}
        found.append(transformers.BatchEncoding(parts))
    return found


@pytest.fixture(scope="module")
def network():
    """A small BERT, trained in a plain loop."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=WORDS,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=CLASSES,
    )
    model = transformers.BertForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(3):
        for batch in batches(0, 600):
            optimizer.zero_grad()
            F.cross_entropy(model(**{**batch, "labels": None}).logits, batch["labels"]).backward()
            optimizer.step()
    return model.eval()


def with_exits(network):
    torch.manual_seed(1)
    example = {name: tensor for name, tensor in batches(0, 2)[0].items() if name != "labels"}
    return ew.add_exits(copy.deepcopy(network), exits=3, example=example)


def test_calls_from_loaders_to_thresholds(network):
    model = with_exits(network)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fitted = ew.fit_exits(model, batches(0, 600))
    assert fitted.samples == 600
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith(("stages.0.head.", "stages.1.head.")) for name in changed)
    calibration = ew.calibrate(model, batches(600, 900), max_accuracy_drop=0.02)
    evaluation = ew.evaluate(model, calibration, batches(900, 1200))
    assert evaluation.anytime[-1] > 0.8
    assert evaluation.calibrated.accuracy > evaluation.anytime[-1] - 0.05
    assert evaluation.calibrated.macs < evaluation.exit_macs[-1]
    runner = ew.EarlyExitRunner(model, calibration.policy, calibration.exit_macs)
    exits = torch.cat([result.exit for result in runner.stream(batches(900, 1200))])
    shares = torch.bincount(exits, minlength=3) / len(exits)
    assert shares.tolist() == pytest.approx(evaluation.calibrated.shares)


def test_batches_that_will_not_do(network):
    model = with_exits(network)
    (batch,) = batches(0, 50)
    short = {**batch, "attention_mask": batch["attention_mask"][:, :3]}
    with pytest.raises(DataError, match=r"expected inputs input_ids torch.int64 \(B, tokens\), attention_mask .* got"):
        ew.fit_exits(model, [short])
    with pytest.raises(DataError, match=r"a mapping with input_ids, attention_mask and label, in batch 0 .*a map"):
        ew.fit_exits(model, [{"input_ids": batch["input_ids"], "labels": batch["labels"]}])
    with pytest.raises(DataError, match=r"in batch 0 .*; got \(torch.int64 \(50, \d+\), torch.int64 \(50\,\)\)"):
        ew.fit_exits(model, [(batch["input_ids"], batch["labels"])])
    with pytest.raises(ValueError, match=r"expected inputs input_ids .*; got torch.float32"):
        ew.EarlyExitRunner(model, ew.ExitPolicy([0.5, 0.5]))(torch.zeros(2, 3))


def test_networks_that_will_not_do(network):
    with pytest.raises(UserError, match=r"it fails on torch.float32 .*, by \w+Error: .* \(example= says"):
        ew.add_exits(network, exits=3)

    class Odd(torch.nn.Linear):
        def forward(self, x):
            return {"scores": super().forward(x)}

    with pytest.raises(UserError, match=r"Odd gives scores torch.float32 \(2, 3\)"):
        ew.add_exits(Odd(4, 3), exits=2, example=torch.zeros(1, 4))
