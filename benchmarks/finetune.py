"""What joint training of a backbone with exits needs, so that the exits cost the last one nothing.

    python benchmarks/finetune.py flowers --data DIR --weights FILE --runs runs/finetune.jsonl [--minutes 9]
    python benchmarks/finetune.py cifar10 --data DIR --runs runs/finetune.jsonl
    python benchmarks/finetune.py table --runs runs/finetune.jsonl --json results/finetune.json

The first two train what is still missing, as far as the time allows, and can be repeated; the third prints all.

The plan. `flowers`: 4 317 photos of 128 pixels, tf_efficientnet_lite0 with its ImageNet weights, 3 epochs, five
stratified folds: every photo is tested once; a tenth of the others is held out for calibration. The reference is
the same network without early exits: the best of the plain settings, by calibration images. `cifar10`: torchvision's
ResNet-18 from scratch at 32 pixels, 5 epochs, 3 seeds. Variants differ in how much of the early exits' gradient reaches
the trunk (1, 0.3, 0.1, 0), in whether heads are fitted on kept features before the joint training or after it, and in
what is distilled. A variant is chosen by its calibration images: of those whose last exit is within half a point of the
best reference, the one with the best mean over early exits. Test images are read for the table alone. Bars: the last
exit's mean paired difference from the reference is at least -1 point; every early exit is no worse than logistic
regression on the pooled features of the frozen network at its place (flowers), or than with losses summed (cifar10).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from common import machine
from torch import Tensor, nn

from exitwise.data.ledger import ImageLedger
from exitwise.data.sources.base import Request, Source
from exitwise.data.sources.files import kept_or_read
from exitwise.data.sources.folder import FolderSource, open_folder
from exitwise.data.splits import Split, Splits
from exitwise.evaluation.outputs import EVALUATION_BATCH, collect_outputs, mean_and_half_width
from exitwise.exiting.outputs import anytime
from exitwise.methods import Method, Uniform
from exitwise.models.staged import Stage, StagedModel
from exitwise.processes.ranks import ALONE
from exitwise.runs.build import build, build_model, preprocessing_of
from exitwise.settings.compose import compose
from exitwise.settings.schema import Settings
from exitwise.training.fitting import fit_heads
from exitwise.training.flags import training_flags
from exitwise.training.kept import Kept, keep
from exitwise.training.trainer import Batches, Trainer
from exitwise.weighting.losses import Loss

FOLDS, SEEDS = 5, 3


class Variant(NamedTuple):
    """Settings, and what they don't say yet.

    Attributes:
        settings: laid over the recipe.
        head_gradient: which share of the early exits' gradient reaches the trunk.
        before: whether all new classifiers are fitted on the frozen network's features first.
        after: fits of the early heads on kept features afterwards: name to (passes with augmentation or 0, distil).
    """

    settings: Mapping[str, Any]
    head_gradient: float = 1.0
    before: bool = False
    after: Mapping[str, tuple[int, float]] = {}


PLAIN = {"exits": 1}
AFTER = {"heads after": (0, 0.0), "heads after, distilled": (0, 0.5), "heads after, 3 augmented": (3, 0.0)}
AFTER |= {"heads after, 3 augmented, distilled": (3, 0.5)}
VARIANTS: dict[str, dict[str, Variant]] = {
    "flowers": {
        "plain": Variant(PLAIN),
        "plain, lr 5e-4": Variant({**PLAIN, "lr": 5e-4}),
        "plain, lr 2e-3": Variant({**PLAIN, "lr": 2e-3}),
        "plain, classifier before": Variant(PLAIN, before=True),
        "plain, lr 5e-4, classifier before": Variant({**PLAIN, "lr": 5e-4}, before=True),
        "sum": Variant({}, 1.0, after=AFTER),
        "gradient 0.3": Variant({}, 0.3, after=AFTER),
        "gradient 0.1": Variant({}, 0.1, after=AFTER),
        "gradient 0": Variant({}, 0.0, after=AFTER),
        "sum, before": Variant({}, 1.0, True, AFTER),
        "gradient 0.3, before": Variant({}, 0.3, True, AFTER),
    },
    "cifar10": {
        "plain": Variant(PLAIN),
        "sum": Variant({}, 1.0, after={"heads after": (0, 0.0)}),
        "gradient 0.3": Variant({}, 0.3, after={"heads after": (0, 0.0)}),
        "gradient 0.1": Variant({}, 0.1, after={"heads after": (0, 0.0)}),
        "gradient 0": Variant({}, 0.0, after={"heads after": (0, 0.0)}),
        "plain, sgd": Variant({**PLAIN, "optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4, "label_smoothing": 0.0}),
        "sum, sgd": Variant({"optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4, "label_smoothing": 0.0}),
        "mean, sgd": Variant(
            {"optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4, "label_smoothing": 0.0, "exit_weights": [0.25] * 4}
        ),
    },
}


def settings_of(task: str, data: Path, weights: Path | None, variant: Variant, seed: int, workers: int) -> Settings:
    """Return the recipe's settings for a task, with a variant's over them."""
    flags: dict[str, Any] = {"data": str(data), "seed": seed, "workers": workers, "device": "auto"}
    if task == "flowers":
        flags |= {"model": "timm/tf_efficientnet_lite0", "pretrained": str(weights), "image_size": 128, "epochs": 3}
    else:
        flags |= {"model": "torchvision/resnet18", "pretrained": "none", "image_size": 32, "epochs": 5}
        flags |= {"augment": "crop"}
    return compose(None, None, {**flags, **variant.settings})


def folds_of(source: Source, count: int = FOLDS) -> list[Tensor]:
    """Return the positions of each fold's images, every class dealt out evenly."""
    generator = torch.Generator().manual_seed(0)
    parts: list[list[Tensor]] = [[] for _ in range(count)]
    for target in range(len(source.classes)):
        members = (source.targets == target).nonzero().squeeze(1)
        for fold, part in enumerate(members[torch.randperm(len(members), generator=generator)].tensor_split(count)):
            parts[fold].append(part)
    return [torch.cat(part).sort().values for part in parts]


def splits_of(task: str, sources: Sequence[Source], settings: Settings, fold: int) -> Splits:
    """Return train, calibration (a tenth of what is not tested, at random) and test images of a fold or seed."""
    preprocessing = preprocessing_of(settings)
    generator = torch.Generator().manual_seed(1 + fold)
    train = sources[0]
    if task == "flowers":
        folds = folds_of(train)
        test, rest = folds[fold], torch.cat([part for number, part in enumerate(folds) if number != fold])
        tested = Split(train, test, preprocessing)
    else:
        rest = torch.arange(len(train.targets))
        tested = Split(sources[1], torch.arange(len(sources[1].targets)), preprocessing)
    order = rest[torch.randperm(len(rest), generator=generator)]
    held, trained = order.tensor_split([len(order) // 10])
    parts = [Split(train, part.sort().values, preprocessing) for part in (trained, held)]
    return Splits(parts[0], parts[1], tested, train.classes)


def features_of(model: StagedModel, splits: Splits, batches: Any, passes: int, device: torch.device) -> Kept:
    """Keep what the early heads need of the training images, as evaluation sees them or augmented ``passes`` times."""
    if not passes:
        return keep(model, splits.train.batches(EVALUATION_BATCH), model.exits - 1, device)

    def augmented() -> Any:
        for number in range(passes):
            batches.sampler.epoch, batches.sampler.start = 1000 + number, 0
            yield from batches

    return keep(model, augmented(), model.exits - 1, device)


def fit_classifier(model: StagedModel, splits: Splits, device: torch.device) -> None:
    """Fit the last exit's classifier on the features of the frozen network: linear probing before fine-tuning."""
    linear = [module for module in model.stages[-1].modules() if isinstance(module, nn.Linear)][-1]
    features: list[Tensor] = []
    hook = linear.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].detach()))
    model.eval()
    labels = []
    with torch.no_grad():
        for images, targets in splits.train.batches(EVALUATION_BATCH):
            model.forward_last(images.to(device))
            labels.append(targets)
    hook.remove()
    x, y = torch.cat(features), torch.cat(labels).to(device)
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(linear(x), y, label_smoothing=0.1) + 1e-3 * linear.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)


class ScaledHead(nn.Module):
    """A head of which a share of the gradient reaches the trunk."""

    def __init__(self, head: nn.Module, factor: float) -> None:
        super().__init__()
        self.head, self.factor = head, factor

    def forward(self, x: Tensor) -> Tensor:
        """Return the head's logits."""
        return self.head(self.factor * x + (1 - self.factor) * x.detach())


def fit(
    settings: Settings, model: StagedModel, method: Method, optimizer: torch.optim.Optimizer, batches: Batches
) -> None:
    """Train as the settings say, without looking at any other images."""
    loss = Loss(label_smoothing=settings.label_smoothing)
    trainer = Trainer(model, optimizer, method, batches, lambda: [0.0] * model.exits, epochs=settings.epochs, loss=loss)
    with training_flags(tf32=False, compiled=False):
        trainer.fit()


def train_one(task: str, name: str, number: int, data: Path, weights: Path | None, workers: int) -> list[dict]:
    """Train a variant on a fold or seed; return its rows, one more for each way of fitting heads afterwards."""
    variant, start = VARIANTS[task][name], time.perf_counter()
    settings = settings_of(task, data, weights, variant, seed=number, workers=workers)
    splits = splits_of(task, SOURCES, settings, number)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, method, optimizer, batches = build(settings, splits, device, ALONE)
    if variant.before:
        if model.exits > 1:
            fit_heads(model, features_of(model, splits, batches, 0, device), Uniform(), epochs=20, device=device)
        fit_classifier(model, splits, device)
    early = [cast("Stage", stage) for stage in model.stages][:-1]
    for stage in early:
        stage.head = ScaledHead(stage.head, variant.head_gradient)

    def accuracies(split: Split) -> list[float]:
        return anytime(collect_outputs(model, split.batches(EVALUATION_BATCH), device))

    fit(settings, model, method, optimizer, batches)
    for stage in early:
        stage.head = cast("ScaledHead", stage.head).head
    seconds = time.perf_counter() - start

    def row(variant_name: str, extra: float) -> dict[str, Any]:
        found = {"calibration": accuracies(splits.calibration), "test": accuracies(splits.test)}
        took = {"seconds": round(seconds + extra, 1), "images": [len(split) for split in splits[:3]]}
        return {"task": task, "variant": variant_name, "number": number, **found, **took, "gpu": machine()["gpu"]}

    rows = [row(name, 0.0)]
    trained = [{key: value.clone() for key, value in cast("Any", s).head.state_dict().items()} for s in model.stages]
    kept: dict[int, Kept] = {}
    for after, (passes, distil) in variant.after.items():
        begin = time.perf_counter()
        for each, state in zip(model.stages, trained, strict=True):
            cast("Any", each).head.load_state_dict(state)
        if passes not in kept:
            kept[passes] = features_of(model, splits, batches, passes, device)
        fit_heads(model, kept[passes], Uniform(), epochs=20, distil=distil, device=device)
        rows.append(row(f"{name}; {after}", time.perf_counter() - begin))
    return rows


def regress(data: Path, weights: Path) -> list[dict]:
    """Fit logistic regression on the pooled features of the frozen network at each exit's place, per fold.

    Features are standardised; the penalty is chosen on calibration images, exit by exit.
    """
    settings = settings_of("flowers", data, weights, Variant({"head": "linear"}), 0, 0)
    (source,) = SOURCES
    everything = Split(source, torch.arange(len(source.targets)), preprocessing_of(settings))
    model = build_model(settings, len(source.classes), pretrained=True)
    kept = keep(model, everything.batches(EVALUATION_BATCH), model.exits - 1)
    features = [place.of(kept.rows) for place in kept.places[: kept.heads]]
    rows = []
    for fold in range(FOLDS):
        splits = splits_of("flowers", SOURCES, settings, fold)
        found: dict[str, list[float]] = {"calibration": [], "test": []}
        for each in features:
            mean, std = each[splits.train.indices].mean(0), each[splits.train.indices].std(0)
            x = [((each[split.indices] - mean) / std, split.targets) for split in splits[:3]]
            fits = [_logistic(*x[0], penalty) for penalty in (1e-3, 1e-2, 3e-2, 1e-1)]
            scores = [[float((part @ w + b).argmax(1).eq(y).float().mean()) for part, y in x[1:]] for w, b in fits]
            best = max(scores)
            found["calibration"].append(best[0])
            found["test"].append(best[1])
        rows.append({"task": "flowers", "variant": "logistic regression, frozen", "number": fold, **found})
    return rows


def _logistic(x: Tensor, y: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Return weight (D, C) and bias (C) of multinomial logistic regression with an L2 penalty."""
    weight, bias = torch.zeros(x.shape[1], int(y.max()) + 1), torch.zeros(int(y.max()) + 1)
    optimizer = torch.optim.LBFGS([weight.requires_grad_(), bias.requires_grad_()], max_iter=300)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(x @ weight + bias, y) + penalty * weight.square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach()


SOURCES: list[Source] = []
"""Decoded once, before the processes are forked."""


def _open(task: str, data: Path) -> list[Source]:
    size = 128 if task == "flowers" else 32
    if task == "flowers":
        return [kept_or_read(FolderSource(data, 3, size, None, ImageLedger()), size)]
    found = open_folder(Request(str(data), data, 3, size, ImageLedger()))
    assert found.test is not None
    return [found.train, found.test]


def _job(job: tuple, deadline: float, threads: int) -> tuple[tuple, list[dict], str]:
    torch.set_num_threads(threads)
    if time.time() > deadline:
        return job, [], "out of time"
    try:
        return job, train_one(*job), ""
    except Exception:
        return job, [], traceback.format_exc()


def run(options: argparse.Namespace) -> None:
    """Train what is missing."""
    torch.set_num_threads(1)  # a pool of threads in this process would be missing, and waited for, in the forked ones
    done = {(r["task"], r["variant"], r["number"]) for r in _read(options.runs)}
    numbers = range(FOLDS if options.task == "flowers" else SEEDS)
    names = options.variants or list(VARIANTS[options.task])
    jobs = [
        (options.task, name, number, options.data, options.weights, options.workers)
        for number in numbers
        for name in names
        if (options.task, name, number) not in done
    ]
    SOURCES.extend(_open(options.task, options.data))
    deadline = time.time() + 60 * options.minutes
    options.runs.parent.mkdir(parents=True, exist_ok=True)
    print(f"{len(jobs)} to train, {options.processes} at a time", flush=True)
    if options.task == "flowers" and ("flowers", "logistic regression, frozen", FOLDS - 1) not in done:
        with options.runs.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in regress(options.data, options.weights))
    if options.processes == 1:
        for job in jobs:
            _record(options.runs, *_job(job, deadline, options.threads))
        return
    with multiprocessing.get_context("fork").Pool(options.processes) as pool:
        work = partial(_job, deadline=deadline, threads=options.threads)
        for done_job in pool.imap_unordered(work, jobs):
            _record(options.runs, *done_job)


def _record(path: Path, job: tuple, rows: list[dict], error: str) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    said = " ".join(f"{100 * a:.1f}" for a in rows[0]["calibration"]) if rows else error.strip()[-300:]
    print(f"{job[0]} {job[2]} {job[1]}: {said} ({rows[0]['seconds'] if rows else '-'} s)", flush=True)


def _read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(options: argparse.Namespace) -> None:
    """Print means on calibration and test images, and paired differences of the last exit from the best reference."""
    rows = _read(options.runs)
    for task in VARIANTS:
        ours = [row for row in rows if row["task"] == task]
        names = list(dict.fromkeys(row["variant"] for row in ours))
        by = {name: {row["number"]: row for row in ours if row["variant"] == name} for name in names}
        plains = [name for name in names if name.startswith("plain")]
        if not plains:
            continue
        reference = max(plains, key=lambda name: np.mean([row["calibration"][-1] for row in by[name].values()]))
        print(f"\n{task}; reference (by calibration images): {reference}")
        for name in names:
            both = sorted(set(by[name]) & set(by[reference]))
            parts = {}
            for split in ("calibration", "test"):
                parts[split] = 100 * np.mean([by[name][number][split] for number in both], axis=0)
                differences = [
                    100 * (by[name][number][split][-1] - by[reference][number][split][-1]) for number in both
                ]
                mean, half = mean_and_half_width(differences)
                parts[f"{split} difference"] = f"{mean:+.2f} ± {0 if half is None else half:.2f}"
            text = "   ".join(
                f"{' '.join(f'{a:5.1f}' for a in parts[s])} ({parts[f'{s} difference']})"
                for s in ("calibration", "test")
            )
            print(f"{name:52} {len(both)}  {text}")
    if options.json is not None:
        options.json.write_text(json.dumps({"runs": rows, "machine": machine(), "command": sys.argv}, indent=1) + "\n")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=[*VARIANTS, "table"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--variants", nargs="*")
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    (table if options.task == "table" else run)(options)


if __name__ == "__main__":
    main()
