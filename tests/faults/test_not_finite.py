"""Batches, losses and meta-gradients that are not finite: steps are skipped, and nothing of the kind is ever saved."""

import math

import pytest
from children import all_finite, tiny_network

import exitwise as ew
from exitwise.data import TrainingBatches
from exitwise.methods.weights import meta_weighted, shared_step
from exitwise.settings.compose import compose
from exitwise.training import checkpoint_folder
from exitwise.training.checkpoint import load_checkpoint
from exitwise.weighting import passes

FLAGS = {"device": "cpu", "batch_size": 20, "epochs": 3, "checkpoint_every": 1}
FLAGS |= {"test_fraction": 0.8, "calibration_fraction": 0.16}
KINDS = {
    "batch": ["uniform", "meta-weighted", "meta-weighted-shared"],
    "loss": ["uniform", "meta-weighted", "meta-weighted-shared"],
    "meta-gradient": ["meta-weighted", "meta-weighted-shared"],
}


class Spoiler:
    """Makes some of the values that pass by not finite, and counts them.

    Never two in a row: the shared step does not use the meta-gradient of a half step that was skipped.
    """

    def __init__(self, dice, share):
        self.dice, self.share = dice, share
        self.spoiled, self.just = 0, False

    def __call__(self, value):
        self.just = not self.just and self.dice.random() < self.share
        if not self.just:
            return value
        self.spoiled += 1
        return value * self.dice.choice([math.nan, math.inf, -math.inf])


def inject(kind, method, spoil, monkeypatch):
    """Half steps that each spoiled value costs."""
    if kind == "batch":
        batches = TrainingBatches.__iter__
        monkeypatch.setattr(TrainingBatches, "__iter__", lambda self: ((spoil(x), y) for x, y in batches(self)))
        return 2
    if kind == "loss":
        loss = passes.weighted_loss
        monkeypatch.setattr(passes, "weighted_loss", lambda *args: spoil(loss(*args)))
    elif method == "meta-weighted":
        gradient_at = meta_weighted.meta_gradient

        def spoiled(*args, **options):
            result = gradient_at(*args, **options)
            return result._replace(weights=spoil(result.weights))

        monkeypatch.setattr(meta_weighted, "meta_gradient", spoiled)
    else:
        gradient_of = shared_step.weight_gradient
        monkeypatch.setattr(shared_step, "weight_gradient", lambda *args: spoil(gradient_of(*args)))
    return 1


@pytest.mark.parametrize(("kind", "method"), [(kind, method) for kind, methods in KINDS.items() for method in methods])
def test_not_finite(kind, method, tmp_path, report, dice, monkeypatch):
    monkeypatch.setattr("exitwise.runs.build.build_model", tiny_network)
    save, saved = checkpoint_folder.save_checkpoint, []

    def save_and_look(folder, tree):
        save(folder, tree)
        saved.append(all_finite(load_checkpoint(folder)))

    monkeypatch.setattr(checkpoint_folder, "save_checkpoint", save_and_look)
    spoil = Spoiler(dice, 0.4)
    price = inject(kind, method, spoil, monkeypatch)
    small = {} if method == "uniform" else {"wpn_hidden": 16}
    result = ew.train(compose("digits", flags={**FLAGS, "method": method, **small}), tmp_path / "run")
    skipped = sum(row.get("skipped_steps", 0) for row in result.history)
    assert len(saved) >= result.history[-1]["iteration"]
    assert all(saved)
    report(f"{kind} not finite, {method}; half steps skipped", price * spoil.spoiled, skipped)
