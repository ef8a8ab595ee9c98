"""Exits on a classifier of texts, from its loaders to thresholds: trained here on a task made up for it."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import exitwise as ew
from exitwise.errors import DataError, UserError
from exitwise.models.lookups import lookups

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

NAMES = ("input_ids", "attention_mask")
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


def with_exits(network, exits=3):
    torch.manual_seed(1)
    example = {name: batches(0, 2)[0][name] for name in NAMES}
    return ew.add_exits(copy.deepcopy(network), exits=exits, example=example)


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
    timed = ew.bench(model, calibration, batches(900, 1200), forms="eager", batch_sizes=[1], seconds=0.2)
    assert len(timed.rows) > 2


@pytest.fixture(scope="module")
def calibrated(network):
    model = with_exits(network, exits=2)
    ew.fit_exits(model, batches(0, 600), epochs=10)
    return model, ew.calibrate(model, batches(600, 900), budget=0.8)


def tokenizer():
    """One word for each id, beginning with [CLS]."""
    words = {"[PAD]": 0, "[CLS]": 1, "[UNK]": 2, **{f"w{i}": i for i in range(3, WORDS)}}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.post_processor = tokenizers.processors.TemplateProcessing("[CLS] $A", special_tokens=[("[CLS]", 1)])
    return made


def ids_and_mask(ids, mask):
    return {name: np.array(part, np.int64) for name, part in zip(NAMES, (ids, mask), strict=True)}


def test_a_bundle_answers_texts_of_mixed_length_as_the_network_does(calibrated, tmp_path):
    pytest.importorskip("onnxruntime")
    model, calibration = calibrated
    out = tmp_path / "texts.bundle"
    ew.export(model, calibration, out, preprocessing=ew.Texts(tokenizer(), max_tokens=20))
    assert (out / "tokenizer.json").is_file()
    tests = [{name: batch[name][:, :20] for name in NAMES} for batch in (*batches(900, 1200), *batches(0, 200))]
    ids = [row[row > 0][1:].tolist() for batch in tests for row in batch["input_ids"]]
    texts = [" ".join(f"w{i}" for i in row) for row in ids]
    assert len(texts) == 500
    assert len({len(row) for row in ids}) > 10
    eager = ew.EarlyExitRunner(model, calibration.policy, calibration.exit_macs)
    exits, predictions = (
        torch.cat(parts).numpy() for parts in zip(*((r.exit, r.prediction) for r in map(eager, tests)), strict=True)
    )
    assert 100 < exits.sum() < 400
    runner = ew.OnnxRunner(out)
    found = [runner(texts[start : start + 50]) for start in range(0, 500, 50)]
    assert (np.concatenate([each.exit for each in found]) == exits).all()
    assert (np.concatenate([each.prediction for each in found]) == predictions).all()
    assert [int(runner([text]).exit[0]) for text in texts[:40]] == exits[:40].tolist()
    for given, message in (
        (["w3", 4], "expected texts; got a int among them"),
        ({"input_ids": np.ones((1, 2), np.int64)}, "expected inputs input_ids, attention_mask; got input_ids"),
        (ids_and_mask([[3, -1]], [[1, 1]]), "expected whole numbers from 0 in input_ids; sample 1 of 1 has others"),
        (ids_and_mask([[3], [4]], [[1], [0]]), "expected a token in each row of attention_mask; sample 2 of 2 has"),
        (ids_and_mask(np.ones((2, 0)), np.ones((2, 0))), "expected at least one token of input_ids, attention_mask"),
        ("w3 w4", "expected a list of texts, or arrays by name; got str"),
    ):
        with pytest.raises(UserError, match=message):
            runner(given)
    (out / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer.json is not what the manifest says"):
        ew.OnnxRunner(out)


def test_tokenizers_that_will_not_do(calibrated, tmp_path):
    model, calibration = calibrated
    larger = tokenizer()
    larger.add_tokens(["more", "and more"])
    bare = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "a"))
    images = ew.Preprocessing(8, (0.0,), (1.0,))
    for preprocessing, message in (
        (larger, "expected a tokenizer of at most 60 ids, as the network has; got one of 62"),
        (bare, r"a token to fill up with, such as \[PAD\]; it has none"),
        (tmp_path / "none.json", r"or the path of a tokenizer.json; got .*none.json"),
        (images, "expected preprocessing for inputs of input_ids, attention_mask"),
        (3, "got int"),
    ):
        with pytest.raises(UserError, match=message):
            ew.export(model, calibration, tmp_path / "texts.bundle", preprocessing=preprocessing)
    assert not (tmp_path / "texts.bundle").exists()
    with pytest.raises(UserError, match="max_tokens of at least 1; got 0"):
        ew.Texts(tokenizer(), 0)


def test_a_tokenizer_of_transformers_says_how_to_cut_and_to_fill_up():
    own = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(), pad_token="[PAD]", padding_side="left", model_max_length=4
    )
    made = tokenizers.Tokenizer.from_str(ew.Texts(own).content.decode())
    long, short = made.encode_batch(["w3 w4 w5 w6 w7", "w8"])
    assert long.ids == [1, 3, 4, 5]
    assert short.ids == [0, 0, 1, 8]
    assert short.attention_mask == [0, 0, 1, 1]


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
    beyond = {"input_ids": torch.tensor([[1, WORDS]]), "attention_mask": torch.ones(1, 2, dtype=torch.int64)}
    with pytest.raises(ValueError, match=rf"as the network knows; got input_ids 1 to {WORDS} \(1, 2\), attention_mask"):
        ew.EarlyExitRunner(model, ew.ExitPolicy([0.5, 0.5]))(beyond)


def test_networks_that_will_not_do(network):
    with pytest.raises(UserError, match=r"it fails on torch.float32 .*, by \w+Error: .* \(example= says"):
        ew.add_exits(network, exits=3)

    class Odd(torch.nn.Linear):
        def forward(self, x):
            return {"scores": super().forward(x), "others": x}

    with pytest.raises(UserError, match="Odd gives scores"):
        ew.add_exits(Odd(4, 3), exits=2, example=torch.zeros(1, 4))


@pytest.mark.slow
def test_texts_are_cut_where_the_network_ends(calibrated, tmp_path):
    pytest.importorskip("onnxruntime")
    model, calibration = calibrated
    ew.export(model, calibration, tmp_path / "texts.bundle", preprocessing=tokenizer())
    runner = ew.OnnxRunner(tmp_path / "texts.bundle")
    words = " ".join(f"w{3 + i % 50}" for i in range(200))
    ids = runner.read_texts([words, "w3"])["input_ids"]
    assert ids.shape == (2, 64)
    assert ids[0, 1:].tolist() == [3 + i % 50 for i in range(63)]
    cut = " ".join(words.split()[:63])
    np.testing.assert_array_equal(runner([words]).logits, runner([cut]).logits)
    long = {name: np.ones((1, 65), np.int64) for name in NAMES}
    with pytest.raises(UserError, match=r"^expected inputs that the network takes; it fails on .*\(1, 65\)[^\n]*$"):
        runner.by_stages(long)
    with pytest.raises(UserError, match="max_tokens of at most 64, as many as the network has positions; got 65"):
        ew.export(model, calibration, tmp_path / "other", preprocessing=ew.Texts(tokenizer(), 65))
    left = tokenizer()
    left.enable_truncation(300, direction="left")
    ew.export(model, calibration, tmp_path / "left.bundle", preprocessing=left)
    ids = ew.OnnxRunner(tmp_path / "left.bundle").read_texts([words])["input_ids"]
    assert ids[0, -1] == 3 + 199 % 50


class ByParameter(torch.nn.Module):
    """Positions are rows of a parameter, of which as many are added as there are tokens."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(20, 8)
        self.positions = torch.nn.Parameter(torch.randn(1, 37, 8))
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(4))
        self.last = torch.nn.Linear(8, 3)

    def forward(self, input_ids):
        x = self.table(input_ids) + self.positions[:, : input_ids.shape[1]]
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.last(x.mean(1))


def tiny(kind, **options):
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    config = getattr(transformers, f"{kind}Config")(
        **sizes, vocab_size=50, num_labels=2, pad_token_id=0, max_position_embeddings=40, **options
    )
    return getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()


@pytest.mark.parametrize(
    ("make", "positions", "ids"),
    [
        (lambda: tiny("Bert"), 40, 50),
        (lambda: tiny("Roberta"), 39, 50),  # the first of its positions stands for what fills up
        (lambda: tiny("Qwen2", num_key_value_heads=2), None, 50),
        (ByParameter, 37, 20),
    ],
    ids=["bert", "roberta", "rotary", "parameter"],
)
def test_what_a_network_of_texts_takes(make, positions, ids):
    network = make()
    example = {"input_ids": torch.tensor([[0, 0, 3, 4, 5, 6]]), "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1]])}
    if isinstance(network, ByParameter):
        del example["attention_mask"]
    model = ew.add_exits(network, exits=2, example=example)
    assert lookups(model) == (ids, positions)
    for tokens, works in ((positions, True), ((positions or 0) + 1, False)):
        text = {name: torch.full((1, tokens or 1), 3 if name == "input_ids" else 1) for name in example}
        if positions and works:
            network(**text)
        elif positions:
            with pytest.raises((IndexError, RuntimeError)):
                network(**text)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.full((4, 6), 60), "expected token ids from 0 to 59 in batch 0 of the training loader; got 60 to 60"),
        (torch.full((4, 6), -1), "expected token ids from 0 to 59 in batch 0 .*; got -1 to -1"),
        (
            torch.ones(4, 65).long(),
            "expected at most 64 tokens, as many as the network has positions, in batch 0 .*; got 65",
        ),
        (torch.ones(0, 6).long(), "expected at least one sample in batch 0 of the training loader; it is empty"),
    ],
)
def test_tokens_that_the_network_does_not_know(calibrated, ids, message):
    model, _ = calibrated
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.zeros(len(ids)).long()}
    with pytest.raises(DataError, match=message):
        ew.fit_exits(model, [batch])


def test_smaller_whole_numbers_are_taken(calibrated, tmp_path):
    pytest.importorskip("onnxruntime")
    model, calibration = calibrated
    narrow = [
        {"input_ids": b["input_ids"].int(), "attention_mask": b["attention_mask"].bool(), "labels": b["labels"].int()}
        for b in batches(900, 1000)
    ]
    wide = ew.evaluate(model, calibration, batches(900, 1000))
    assert ew.evaluate(model, calibration, narrow).anytime == wide.anytime
    ew.export(model, calibration, tmp_path / "bundle")
    runner = ew.OnnxRunner(tmp_path / "bundle")
    given = {name: narrow[0][name].numpy() for name in NAMES}
    expected = runner({name: batches(900, 950)[0][name].numpy() for name in NAMES})
    np.testing.assert_array_equal(runner(given).logits, expected.logits)
    for empty in ([], {name: array[:0] for name, array in given.items()}):
        with pytest.raises(UserError, match="expected at least one sample of input_ids, attention_mask; got none"):
            runner(empty)
