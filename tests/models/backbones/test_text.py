"""Exits on Hugging Face's classifiers of texts, with tiny configurations: one row per architecture."""

import pytest
import torch

import exitwise as ew
from exitwise.deploy.formats.onnx import onnx_of_exit
from exitwise.deploy.sessions import open_session
from exitwise.kernels.inputs import varied

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "num_labels": 3,
    "pad_token_id": 0,
}
KINDS = {
    "bert": {},
    "distilbert": {"dim": 32, "n_layers": 4, "n_heads": 2, "hidden_dim": 64},
    "roberta": {},
    "deberta-v2": {},
    "modernbert": {"bos_token_id": 1, "eos_token_id": 1, "cls_token_id": 1, "sep_token_id": 2},
    "qwen2": {"num_key_value_heads": 2},
}


def network(kind):
    torch.manual_seed(0)
    sizes = {"vocab_size": 200, "num_labels": 3} if kind == "distilbert" else SIZES
    config = transformers.AutoConfig.for_model(kind, **sizes, **KINDS[kind])
    return transformers.AutoModelForSequenceClassification.from_config(config).eval()


def texts(lengths, longest=12):
    """Token ids and masks of texts of these lengths, filled up at the end."""
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.randint(3, 200, mask.shape, generator=generator) * mask, "attention_mask": mask}


@pytest.mark.parametrize("kind", KINDS)
def test_exits_costs_and_runner(kind):
    backbone = network(kind)
    model = ew.add_exits(backbone, exits=3, example=texts([12, 7]))
    assert len({point.name.rsplit(".", 1)[0] for point in model.points}) == 1  # of the row of blocks
    costs = model.exit_macs
    assert all(abs(cost / costs[-1] - point.share) < 0.03 for cost, point in zip(costs, model.points, strict=False))
    inputs = varied(texts([9, 5, 9, 2], 9), 30, next(model.parameters()))
    for stage in list(model.stages)[:-1]:
        torch.nn.init.normal_(stage.head.head.linear.weight)
    with torch.no_grad():
        logits = torch.stack(model(inputs), dim=1)
        assert torch.equal(logits[:, -1], backbone(**inputs).logits)
    outputs = ew.Outputs.from_logits(logits, torch.zeros(30, dtype=torch.long))
    policy = ew.calibrate_proportions(outputs.confidences, [0.4, 0.3, 0.3])
    result, left = ew.EarlyExitRunner(model, policy)(inputs), outputs.under(policy)
    assert result.exit.tolist() == left.exits.tolist()
    assert result.prediction.tolist() == left.predictions.tolist()
    assert len(set(result.exit.tolist())) == 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_bundles_take_any_number_of_tokens(kind, tmp_path):
    pytest.importorskip("onnxruntime")
    model = ew.add_exits(network(kind), exits=3, example=texts([12, 7]))
    for stage in list(model.stages)[:-1]:
        torch.nn.init.normal_(stage.head.head.linear.weight)
    held_out = varied(texts([9, 5, 9, 2], 9), 40, next(model.parameters()))
    calibration = ew.calibrate(model, [(held_out, torch.arange(40) % 3)], budget=0.6)
    ew.export(model, calibration, tmp_path / "bundle")
    runner = ew.OnnxRunner(tmp_path / "bundle")
    alone = open_session(onnx_of_exit(model, 1))
    names = [each.name for each in alone.get_inputs()]
    eager = ew.EarlyExitRunner(model, calibration.policy, calibration.exit_macs)
    for longest in (5, 12, 30):
        inputs = varied(texts([longest, 2, longest - 1], longest), 9, next(model.parameters()))
        wanted = eager(inputs)
        (logits,) = alone.run(None, {name: inputs[name].numpy() for name in names})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), model(inputs)[1], atol=1e-4, rtol=1e-4)
        for rows in (slice(None), slice(1)):
            found = runner({name: value[rows].numpy() for name, value in inputs.items()})
            assert found.exit.tolist() == wanted.exit[rows].tolist()
            assert found.prediction.tolist() == wanted.prediction[rows].tolist()


@pytest.mark.parametrize("kind", ["bert", "qwen2"])
@pytest.mark.parametrize("skip", [True, False])
def test_filling_up_changes_no_answer_and_tokens_do(kind, skip):
    model = ew.add_exits(network(kind), exits=3, example=texts([12, 7]), skip=skip)
    assert all(point.feature.causal == (kind == "qwen2") for point in model.points)
    for stage in list(model.stages)[:-1]:
        torch.nn.init.normal_(stage.head.head.linear.weight)
    padded = texts([7, 12])
    alone = {name: value[:1, :7] for name, value in padded.items()}
    other = {**alone, "input_ids": alone["input_ids"].clone()}
    other["input_ids"][0, 6] += 1
    with torch.no_grad():
        answers, wanted, changed = model(padded), model(alone), model(other)
    for answer, want, change in zip(answers, wanted, changed, strict=True):
        torch.testing.assert_close(answer[:1], want)
        assert not torch.allclose(change, want)
