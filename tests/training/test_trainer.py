import copy
import math
import signal
from functools import cache

import pytest
import torch

from exitwise.data import Preprocessing, TrainingBatches, load
from exitwise.errors import Interrupted, UserError
from exitwise.methods import create_method
from exitwise.methods.losses.distil import DistilRun
from exitwise.models import MSDNet
from exitwise.models.staged import Stage, StagedModel
from exitwise.training.checkpoint import save_checkpoint
from exitwise.training.checkpoint_folder import CheckpointFolder
from exitwise.training.step import accumulated_step, half_batches, half_step
from exitwise.training.trainer import Silent, Trainer
from exitwise.weighting.losses import Loss
from images import make_folder

METHODS = {
    "uniform": {},
    "meta-weighted": {"proportions": [0.5, 0.3, 0.2], "hidden": 16, "meta_interval": 2},
    "meta-weighted-shared": {"proportions": [0.5, 0.3, 0.2], "hidden": 16},
}


def tiny_model():
    torch.manual_seed(0)
    sizes = {"channels": 4, "growth": 4, "growth_factors": (1, 2), "bottleneck_factors": (1, 2), "head_channels": 4}
    return MSDNet(3, blocks=3, input_shape=(3, 8, 8), **sizes)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    root = make_folder(tmp_path_factory.mktemp("data"))
    return load(str(root), Preprocessing(8, (0.5,) * 3, (0.25,) * 3, "crop")).train


def trainer(split, method="uniform", checkpoints=None, evaluate=None, reporter=None, seed=0, **options):
    model = tiny_model()
    batches = TrainingBatches(split, 10, seed)
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        create_method(method, **METHODS[method]),
        batches,
        evaluate or (lambda: [0.5, 0.5, 0.5]),
        **{"epochs": 2, "checkpoints": checkpoints, "reporter": reporter, **options},
    )


TAUGHT = {"loss": DistilRun(0.4), "teacher": lambda images: 3 * images.mean((2, 3))}
"""Options of a training with a teacher of three classes."""


@pytest.fixture(scope="module")
def uninterrupted(split):
    """A trained trainer by its method, and maybe with a teacher."""

    @cache
    def train(method, taught=False):
        whole = trainer(split, method, **(TAUGHT if taught else {}))
        whole.fit()
        return whole

    return train


class Stop(Exception):
    """Stands for a killed process."""


class StopAfter(Silent):
    def __init__(self, iterations):
        self.iterations = iterations

    def on_step(self, iteration, total, meters):
        if iteration == self.iterations:
            raise Stop


def state_of(method):
    """A method's state, without that of Python's random numbers, which the shape checks draw too."""
    state = method.state_dict()
    if state.get("pending"):
        state["pending"]["random"].pop("python")
    return state


@pytest.mark.parametrize("stop_after", [1, 3, 4, 5])
@pytest.mark.parametrize("method", METHODS)
def test_resuming_gives_the_uninterrupted_run_bit_for_bit(split, uninterrupted, method, stop_after, tmp_path):
    whole = uninterrupted(method)
    history = whole.progress.history
    checkpoints = CheckpointFolder(tmp_path)
    options = {"checkpoints": checkpoints, "checkpoint_every": 2}
    with pytest.raises(Stop):
        trainer(split, method, reporter=StopAfter(stop_after), **options).fit()
    again = trainer(split, method, **options)
    assert again.resume() == (stop_after > 2)
    assert again.fit() == history
    torch.testing.assert_close(again.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(state_of(again.method), state_of(whole.method), rtol=0, atol=0)
    assert again.samples.rows() == whole.samples.rows()


def test_resuming_keeps_what_the_teacher_said_of_a_half_that_waits(split, uninterrupted, tmp_path):
    whole = uninterrupted("meta-weighted-shared", taught=True)
    options = {"checkpoints": CheckpointFolder(tmp_path), "checkpoint_every": 3, **TAUGHT}
    with pytest.raises(Stop):
        trainer(split, "meta-weighted-shared", reporter=StopAfter(4), **options).fit()
    again = trainer(split, "meta-weighted-shared", **options)
    assert again.resume()
    assert again.method.loaded["run"]["teacher"].shape[1] == 3
    assert again.fit() == whole.progress.history
    torch.testing.assert_close(again.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    assert whole.progress.history != uninterrupted("meta-weighted-shared").progress.history


def test_an_average_is_evaluated_and_kept_in_place_of_the_weights_and_survives_a_kill(split, uninterrupted, tmp_path):
    def averaging(folder, reporter=None):
        seen = []
        made = trainer(
            split,
            checkpoints=CheckpointFolder(tmp_path / folder),
            evaluate=lambda: seen.append(copy.deepcopy(made.model.state_dict())) or [0.5] * 3,
            reporter=reporter,
            checkpoint_every=2,
            ema=0.9,
        )
        return made, seen

    whole, evaluated = averaging("whole")
    whole.fit()
    plain = uninterrupted("uniform").model.state_dict()
    torch.testing.assert_close(whole.model.state_dict(), plain, rtol=0, atol=0)
    kept = whole.checkpoints.load("best").tree["model"]
    torch.testing.assert_close(kept, evaluated[0], rtol=0, atol=0)
    with pytest.raises(Stop):
        averaging("killed", StopAfter(5))[0].fit()
    again, _ = averaging("killed")
    assert again.resume()
    again.fit()
    again.adopt_average()
    torch.testing.assert_close(again.model.state_dict(), evaluated[-1], rtol=0, atol=0)
    assert any((value != plain[name]).any() for name, value in evaluated[-1].items())


def test_gradients_are_clipped_to_a_norm_and_their_norm_is_told(split):
    """With plain SGD an update is as long as the learning rate times the clipped norm."""

    def train(clip):
        made = trainer(split, max_iterations=1, clip=clip)
        before = [param.detach().clone() for param in made.model.parameters()]
        made.optimizer.param_groups[0]["momentum"] = 0
        row = made.fit()[-1]
        moved = torch.cat([(a - b).flatten() for a, b in zip(made.model.parameters(), before, strict=True)]).norm()
        return row, moved.item()

    (row, moved), (clipped, short) = train(None), train(0.01)
    assert row["gradient_norm"] > 0.1
    assert short <= 2 * 0.05 * 0.01 * 1.001 < moved
    assert clipped["gradient_norm"] > 0.1
    assert sum(row[f"loss_{k}"] for k in (1, 2, 3)) == pytest.approx(row["loss"], rel=1e-5)
    with pytest.raises(UserError, match="MetaWeighted looks one step ahead, which knows no clipping; got clip 1"):
        trainer(split, "meta-weighted", clip=1)


def test_a_teacher_sees_the_augmented_images_once_without_gradients(split):
    seen = []

    def teacher(images):
        seen.append((len(images), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return torch.zeros(len(images), 3)

    trainer(split, epochs=1, loss=DistilRun(0.4), teacher=teacher, bf16=True).fit()
    assert seen == [(len(targets), False, True) for _, targets in TrainingBatches(split, 10, 0)]


def test_resuming_keeps_the_memory_format_of_a_half_that_waits(split, tmp_path):
    """Sums depend on it in their last bits."""
    options = {"channels_last": True, "checkpoints": CheckpointFolder(tmp_path), "checkpoint_every": 3}
    whole = trainer(split, "meta-weighted-shared", channels_last=True)
    history = whole.fit()
    with pytest.raises(Stop):
        trainer(split, "meta-weighted-shared", reporter=StopAfter(4), **options).fit()
    again = trainer(split, "meta-weighted-shared", **options)
    assert again.resume()
    assert again.method.loaded is not None
    assert again.fit() == history
    torch.testing.assert_close(again.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)


def test_the_record_of_weights_survives_a_stop_after_an_epoch(split, tmp_path):
    whole = trainer(split, "meta-weighted")
    whole.fit()
    options = {"checkpoints": CheckpointFolder(tmp_path), "checkpoint_every": 1}
    with pytest.raises(Stop):
        trainer(split, "meta-weighted", reporter=StopAfter(4), **options).fit()
    again = trainer(split, "meta-weighted", **options)
    again.resume()
    assert (again.progress.epoch, again.progress.batch) == (1, 0)
    again.fit()
    rows = again.samples.rows()
    assert rows == whole.samples.rows()
    assert [(row["epoch"], len(row["losses"]), len(row["weights"])) for row in rows] == [(1, 3, 3), (2, 3, 3)]
    assert any(weight != 1 for weights in rows[1]["weights"] for weight in weights)


def test_a_checkpoint_without_a_record_of_weights_is_continued(split):
    whole = trainer(split)
    whole.fit()
    again = trainer(split)
    again.load_state_dict({key: value for key, value in whole.state_dict().items() if key != "samples"})
    assert again.done
    assert again.samples.rows() == []


class Signal(Silent):
    """Sends SIGTERM to this process in a step."""

    def __init__(self, iteration):
        self.iteration = iteration

    def on_step(self, iteration, total, meters):
        if iteration == self.iteration:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("when", [2, 3, 6, "evaluation", "saving"])
def test_a_signal_loses_no_step(split, uninterrupted, when, tmp_path, monkeypatch):
    whole = uninterrupted("meta-weighted-shared")
    checkpoints = CheckpointFolder(tmp_path)

    def evaluate():
        if when == "evaluation":
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("evaluation went on")
        return [0.5, 0.5, 0.5]

    def save(folder, tree):
        if when == "saving" and folder.name.startswith("best"):
            signal.raise_signal(signal.SIGTERM)
        save_checkpoint(folder, tree)

    monkeypatch.setattr("exitwise.training.checkpoint_folder.save_checkpoint", save)
    first = trainer(split, "meta-weighted-shared", checkpoints, evaluate, Signal(when))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        first.fit()
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.undo()
    again = trainer(split, "meta-weighted-shared", checkpoints)
    assert again.resume()
    assert again.progress.iteration == first.progress.iteration == (when if isinstance(when, int) else 3)
    assert again.fit() == whole.progress.history
    torch.testing.assert_close(again.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)


def test_a_finished_run_that_was_stopped_while_evaluating_is_evaluated(split, tmp_path):
    """Also where max_iterations ends it within an epoch."""
    checkpoints = CheckpointFolder(tmp_path)

    def evaluate():
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        trainer(split, checkpoints=checkpoints, evaluate=evaluate, max_iterations=2).fit()
    again = trainer(split, checkpoints=checkpoints, max_iterations=2)
    assert again.resume()
    (row,) = again.fit()
    assert row["iteration"] == again.progress.iteration == 2
    assert again.done


def test_skipped_steps_survive_a_checkpoint(split, tmp_path):
    """A batch that is not finite leaves nothing of the kind in a checkpoint, not even in the half step that waits to be
    judged, and the run resumes bit for bit."""

    class Spoiled(TrainingBatches):
        def __iter__(self):
            first = self.sampler.epoch * self.sampler.batches_per_epoch + self.sampler.start
            for number, (inputs, targets) in enumerate(super().__iter__(), start=first):
                yield inputs * (math.nan if number == 1 else 1), targets

    def spoiled(**options):
        run = trainer(split, "meta-weighted-shared", epochs=1, **options)
        run.batches = Spoiled(split, 10, 0)
        return run

    whole = spoiled()
    history = whole.fit()
    assert history[0]["skipped_steps"] == 2
    checkpoints = CheckpointFolder(tmp_path)
    with pytest.raises(Interrupted):
        spoiled(checkpoints=checkpoints, reporter=Signal(2)).fit()
    again = spoiled(checkpoints=checkpoints)
    assert again.resume()
    assert (int(again.skipped_row.row), again.progress.iteration) == (2, 2)
    assert again.fit() == history
    torch.testing.assert_close(again.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(state_of(again.method), state_of(whole.method), rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_fixes_the_run(split, method):
    first, second = trainer(split, method), trainer(split, method)
    assert first.fit() == second.fit()
    torch.testing.assert_close(first.model.state_dict(), second.model.state_dict(), rtol=0, atol=0)
    assert trainer(split, method, seed=1).fit() != first.progress.history


def test_methods_see_the_same_half_batches_in_the_same_order(split, monkeypatch):
    def seen(method):
        batches = []

        def spy(model, optimizer, weighing, train, meta, *args, **options):
            batches.append((train, meta))
            return half_step(model, optimizer, weighing, train, meta, *args, **options)

        monkeypatch.setattr("exitwise.training.trainer.half_step", spy)
        trainer(split, method).fit()
        return batches

    torch.testing.assert_close(seen("uniform"), seen("meta-weighted"), rtol=0, atol=0)


def test_uniform_training_is_plain_training(split):
    """The same updates by a loop of its own: sum over exits of mean cross-entropies, plain SGD, cosine."""
    trained = trainer(split, loss=Loss(label_smoothing=0.1))
    trained.fit()
    model = tiny_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    batches = TrainingBatches(split, 10, 0)
    total, step = 2 * batches.sampler.batches_per_epoch, 0
    for epoch in range(2):
        batches.sampler.epoch = epoch
        for x, y in batches:
            optimizer.param_groups[0]["lr"] = 0.5 * 0.05 * (1 + math.cos(math.pi * step / total))
            half = (len(x) + 1) // 2
            for part in (slice(0, half), slice(half, None)):
                criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
                loss = sum(criterion(z, y[part]) for z in model(x[part]))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            step += 1
    # float32 sums in another order: equal to about 3e-5 after twelve updates that move weights by 1e-1.
    torch.testing.assert_close(trained.model.state_dict(), model.state_dict(), rtol=1e-3, atol=2e-4)


def test_label_smoothing_changes_the_training_loss():
    model = tiny_model()
    batch = torch.randn(6, 3, 8, 8), torch.randint(3, (6,))
    (train, meta), _ = half_batches(*batch)
    losses = []
    for smoothing in (0.0, 0.3):
        fresh = tiny_model()
        fresh.load_state_dict(model.state_dict())
        optimizer = torch.optim.SGD(fresh.parameters(), lr=0.1)
        step = half_step(fresh, optimizer, create_method("uniform"), train, meta, 0, Loss(label_smoothing=smoothing))
        losses.append(float(step.loss))
    assert losses[0] != losses[1]


def test_exit_weights_scale_the_exits():
    method = create_method("uniform", exit_weights=[1.0, 0.0, 2.0])
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (train, meta), _ = half_batches(torch.randn(8, 3, 8, 8), torch.randint(3, (8,)))
    step = half_step(model, optimizer, method, train, meta, 0)
    means = step.forward.losses.detach().mean(dim=0)
    assert float(step.loss) == pytest.approx(float(means[0] + 2 * means[2]), rel=1e-5)
    head = model.stages[1].head.linear.weight
    assert head.grad.abs().max() == 0


def test_the_best_epoch_is_that_of_the_calibration_accuracy(split, tmp_path):
    scores = iter([[0.1, 0.2, 0.3], [0.5, 0.6, 0.7], [0.4, 0.5, 0.6]])
    checkpoints = CheckpointFolder(tmp_path)
    run = trainer(split, checkpoints=checkpoints, evaluate=lambda: next(scores), epochs=3)
    rows = run.fit()
    assert [row["calibration_accuracy_3"] for row in rows] == [0.3, 0.7, 0.6]
    assert checkpoints.latest("best").name == f"best-{rows[1]['iteration']:08d}"


def test_max_iterations_ends_run_and_schedule(split):
    run = trainer(split, max_iterations=4, epochs=100)
    rows = run.fit()
    assert run.progress.iteration == 4
    assert rows[-1]["iteration"] == 4
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * 0.5 * (1 + math.cos(math.pi * 3 / 4)))


def test_the_learning_rate_rises_in_a_line_before_it_falls(split):
    rates = []
    run = trainer(split, max_iterations=10, epochs=100, warmup=0.4)
    step = run.optimizer.step
    run.optimizer.step = lambda *args: rates.append(run.optimizer.param_groups[0]["lr"]) or step(*args)
    run.fit()
    falling = [0.05 * 0.5 * (1 + math.cos(math.pi * t / 6)) for t in range(6)]
    assert rates[::2] == rates[1::2] == pytest.approx([0.05 * t / 4 for t in range(4)] + falling)


def test_interval_counts_loaded_batches_of_an_epoch(split):
    run = trainer(split, "meta-weighted", epochs=1)  # batches 0, 1, 2; meta_interval 2
    run.fit()
    steps = {int(state["step"]) for state in run.method.optimizer.state.values()}
    assert steps == {4}


def test_halves_of_an_odd_batch():
    x, y = torch.arange(7), torch.arange(7)
    (a, b), (c, d) = half_batches(x, y)
    assert a[0].tolist() == [0, 1, 2, 3] == d[0].tolist()
    assert b[1].tolist() == [4, 5, 6] == c[1].tolist()
    with pytest.raises(ValueError, match="at least 2 samples; got 1"):
        next(half_batches(x[:1], y[:1]))


def test_an_optimizer_without_look_ahead_is_refused_at_the_start(split):
    model = tiny_model()
    batches = TrainingBatches(split, 10, 0)
    with pytest.raises(ValueError, match="SGD, Adam and AdamW; got Adagrad"):
        Trainer(model, torch.optim.Adagrad(model.parameters()), create_method("uniform"), batches, list, epochs=1)


@pytest.mark.parametrize("parts", [2, 3, 100])
def test_accumulated_passes_make_the_update_of_one(parts):
    """Without BatchNorm, in float64, parts of uneven size; a hundred are as many as have two samples."""
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    start = StagedModel([Stage(torch.nn.Identity(), body), Stage(torch.nn.Tanh(), copy.deepcopy(body))], 3, (1, 8, 8))
    batch = torch.randn(22, 1, 8, 8).double(), torch.randint(3, (22,)), torch.randn(22, 3).double()
    halves = next(half_batches(*batch))
    ends, loss = [], DistilRun(0.3, label_smoothing=0.1)
    for accumulated in (False, True):
        model, method = copy.deepcopy(start).double(), create_method("uniform", exit_weights=[2.0, 1.0])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            step = (
                accumulated_step(model, optimizer, method, halves[0], parts, loss)
                if accumulated
                else half_step(model, optimizer, method, *halves, 0, loss)
            )
        figures = [step.loss, step.correct, step.images, step.deviation, step.weights, step.forward.teacher]
        ends.append([model.state_dict(), *figures])
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-12, atol=1e-14)


def test_accumulated_passes_skip_what_is_not_finite(split):
    run = trainer(split, epochs=1, accumulate=2)
    inputs, targets = next(iter(run.batches))
    before = copy.deepcopy(run.model.state_dict())
    inputs[0] = torch.nan
    inputs[-1] = torch.nan
    run.train_on(inputs, targets)
    torch.testing.assert_close(run.model.state_dict(), before, rtol=0, atol=0)
    assert run.meters.means()["skipped_steps"] == 2
    run.fit()
