"""Early exits and cascades beside everything else that costs less: smaller networks, smaller images, int8.

    python benchmarks/rivals.py train --data DIR --weights DIR --out DIR [--processes 5]
    python benchmarks/rivals.py int8 --data DIR --weights DIR --out DIR
    python benchmarks/rivals.py time --data DIR --weights DIR --out DIR
    python benchmarks/rivals.py policies --data DIR --weights DIR --out DIR
    python benchmarks/rivals.py table --out DIR --json results/rivals.json

The first trains what is still missing; DIR of weights holds timm's tf_efficientnet_lite0 and lite2 as safetensors. The
second gives every fold's networks eight bits, the third measures the times of the first fold's networks, each exit
alone, the fourth those of some policies as their bundles run them, and the last chooses every policy by calibration
images and prints all by the test images.

The plan. 4 317 photos of flowers, 128 pixels, five stratified folds: every photo is tested once; a tenth of the others
is held out for calibration. Every network starts from the same ImageNet weights and trains 3 epochs with the
``finetune`` recipe's settings: ``lite0`` and ``lite2`` at 128 pixels and at 160 (upscaled), with sizes drawn at random
from 96, 128 and 160 for every batch (for cascades over sizes), and with four exits at 128 (heads fitted anew on kept
features, distilled). Static rows: each network at each size it was tuned for, float32 and int8, and the exited networks
cut short at each of their exits. Ours: exited networks; ``lite0`` then ``lite2`` at 128, and at 160; one network at 96
then 160; each with the second answer in place of the first, and with both averaged by cost. The time is the
geometric middle between the fastest float32 forms of ``lite0`` and ``lite2`` at batch 1. Of ours and of the static rows
that are no slower, calibration images choose one each; the test images of all folds compare the two, paired by photo.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from common import machine
from finetune import FOLDS, SOURCES, features_of, fit, splits_of
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import interpolate

import exitwise as ew
from exitwise.data.ledger import ImageLedger
from exitwise.data.sources.files import kept_or_read
from exitwise.data.sources.folder import FolderSource
from exitwise.data.splits import Split
from exitwise.deploy.formats.onnx import onnx_of_exit
from exitwise.deploy.sessions import open_session
from exitwise.evaluation.outputs import EVALUATION_BATCH
from exitwise.exiting.calibration import calibrate_macs
from exitwise.exiting.fitting import fit_and_read
from exitwise.exiting.outputs import Outputs, operate
from exitwise.kernels.timing import interleaved_seconds
from exitwise.methods import Uniform
from exitwise.models.staged import StagedModel
from exitwise.processes.ranks import ALONE
from exitwise.runs.build import build, build_model
from exitwise.settings.compose import compose
from exitwise.settings.schema import Settings
from exitwise.training.fitting import fit_heads
from exitwise.training.trainer import Batches

SIZES = (96, 128, 160)
CLASSES = 5
INT8 = ("lite0", "lite2", "lite2@160")
"""Networks that are tried in eight bits."""


class Rival(NamedTuple):
    """How a network is tuned.

    Attributes:
        model: of timm.
        size: of the images that it is tuned on.
        exits: classifiers, the last included.
        sizes: what each batch's images are resized to, one drawn at random; of the same size if none.
    """

    model: str
    size: int
    exits: int = 1
    sizes: tuple[int, ...] = ()


RIVALS = {
    "lite0": Rival("tf_efficientnet_lite0", 128),
    "lite2": Rival("tf_efficientnet_lite2", 128),
    "lite0@160": Rival("tf_efficientnet_lite0", 160),
    "lite2@160": Rival("tf_efficientnet_lite2", 160),
    "lite0, sizes": Rival("tf_efficientnet_lite0", 160, sizes=SIZES),
    "lite2, sizes": Rival("tf_efficientnet_lite2", 160, sizes=SIZES),
    "lite0, exits": Rival("tf_efficientnet_lite0", 128, exits=4),
    "lite2, exits": Rival("tf_efficientnet_lite2", 128, exits=4),
}


def settings_of(rival: Rival, data: Path, weights: Path, fold: int) -> Settings:
    """Return the ``finetune`` recipe's settings for one network."""
    flags = {
        "data": str(data),
        "model": f"timm/{rival.model}",
        "pretrained": str(weights / f"{rival.model}.safetensors"),
    }
    sizes = {"image_size": rival.size, "exits": rival.exits, "epochs": 3}
    return compose(None, None, {**flags, **sizes, "seed": fold, "workers": 0, "device": "auto"})


def stem_of(name: str, fold: int) -> str:
    """Return how the files of a network begin."""
    return f"{name.replace(', ', '-')}-{fold}"


class Resized:
    """Batches whose images are resized to a size drawn at random for each batch."""

    def __init__(self, batches: Batches, sizes: tuple[int, ...]) -> None:
        self.batches, self.sizes = batches, sizes
        self.draws = torch.Generator().manual_seed(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batches, name)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, targets in self.batches:
            yield resized(images, self.sizes[int(torch.randint(len(self.sizes), (), generator=self.draws))]), targets


def resized(images: Tensor, size: int) -> Tensor:
    """Return square images of another size."""
    if images.shape[-1] == size:
        return images
    return interpolate(images, (size, size), mode="bilinear", antialias=True)


def logits_of(model: StagedModel, split: Split, size: int, device: torch.device) -> np.ndarray:
    """Return logits (N, K, C) of a split's images at a size, resized from what the split gives."""
    model.eval()
    with torch.no_grad():
        batches = split.batches(EVALUATION_BATCH)
        found = [torch.stack(model(resized(images.to(device), size)), 1).float().cpu() for images, _ in batches]
    return torch.cat(found).numpy()


def train_one(name: str, fold: int, data: Path, weights: Path, out: Path) -> float:
    """Tune a network on a fold; write its weights, rounded to half precision, and its logits with these weights."""
    rival, start = RIVALS[name], time.perf_counter()
    settings = settings_of(rival, data, weights, fold)
    splits = splits_of("flowers", SOURCES, settings, fold)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, method, optimizer, batches = build(settings, splits, device, ALONE)
    loader = cast("Batches", Resized(batches, rival.sizes)) if rival.sizes else batches
    fit(settings, model, method, optimizer, loader)
    if rival.exits > 1:
        kept = features_of(model, splits, batches, 3, device)
        fit_heads(model, kept, Uniform(), epochs=20, distil=0.5, device=device)
    state = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    model.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in state.items()})
    found: dict[str, np.ndarray] = {}
    for part, split in (("calibration", splits.calibration), ("test", splits.test)):
        found[f"{part}/targets"] = np.asarray(split.targets)
        for size in rival.sizes or (rival.size,):
            found[f"{part}/{size}"] = logits_of(model, split, size, device)
    out.mkdir(parents=True, exist_ok=True)
    stem = out / stem_of(name, fold)
    save_file({key: value.cpu().contiguous() for key, value in state.items()}, f"{stem}.safetensors")
    with Path(f"{stem}.npz").open("wb") as file:  # the last to be written: what is there is whole
        np.savez(file, **found)  # type: ignore[arg-type]
    return time.perf_counter() - start


def _job(job: tuple, deadline: float, threads: int) -> tuple[str, int, str]:
    name, fold, *_ = job
    torch.set_num_threads(threads)
    if time.time() > deadline:
        return name, fold, "out of time"
    try:
        return name, fold, f"{train_one(*job):.0f} s"
    except Exception:
        return name, fold, traceback.format_exc()


def train(options: argparse.Namespace) -> None:
    """Train what is missing, fold by fold."""
    torch.set_num_threads(1)  # a pool of threads in this process would be missing, and waited for, in the forked ones
    SOURCES.append(kept_or_read(FolderSource(options.data, 3, 128, None, ImageLedger()), 128))
    names = options.rivals or list(RIVALS)
    jobs = [
        (name, fold, options.data, options.weights, options.out)
        for fold in range(FOLDS)
        for name in names
        if not (options.out / f"{stem_of(name, fold)}.npz").exists()
    ]
    print(f"{len(jobs)} to train, {options.processes} at a time", flush=True)
    work = partial(_job, deadline=time.time() + 60 * options.minutes, threads=options.threads)
    with multiprocessing.get_context("fork").Pool(options.processes) as pool:
        for name, fold, said in pool.imap_unordered(work, jobs):
            print(f"{name}, fold {fold}: {said}", flush=True)


def network_of(name: str, fold: int, options: argparse.Namespace, size: int | None = None) -> StagedModel:
    """Return a network as it was tuned; for images of another size, if that is given."""
    rival = RIVALS[name] if size is None else RIVALS[name]._replace(size=size)
    settings = settings_of(rival, options.data, options.weights, fold)
    model = build_model(settings, CLASSES, pretrained=False).eval()
    state = load_file(options.out / f"{stem_of(name, fold)}.safetensors")
    model.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in state.items()})
    return model


def int8(options: argparse.Namespace) -> None:
    """Write logits of what has weights at hand in eight bits, ranges found on calibration images."""
    from exitwise.deploy.formats.int8 import for_ranges, quantise_graph
    from exitwise.evaluation.exported import arrays_of

    SOURCES.append(kept_or_read(FolderSource(options.data, 3, 128, None, ImageLedger()), 128))
    for fold in range(FOLDS):
        for name in options.rivals or INT8:
            path = options.out / f"{stem_of(name, fold)}-int8.npz"
            if path.exists() or not (options.out / f"{stem_of(name, fold)}.safetensors").exists():
                continue
            settings = settings_of(RIVALS[name], options.data, options.weights, fold)
            splits, model = splits_of("flowers", SOURCES, settings, fold), network_of(name, fold, options)
            graph = options.out / f"{stem_of(name, fold)}-int8.onnx"
            float32 = graph.with_name(f"{stem_of(name, fold)}.onnx")
            float32.write_bytes(onnx_of_exit(model, 0))
            images = (images for images, _ in arrays_of(model, splits.calibration.batches(EVALUATION_BATCH)))
            quantise_graph(float32, graph, "static", list(for_ranges(images)), name)
            session, found = open_session(graph.read_bytes()), {}
            for part, split in (("calibration", splits.calibration), ("test", splits.test)):
                batches = arrays_of(model, split.batches(EVALUATION_BATCH))
                found[f"{part}/{RIVALS[name].size}"] = np.concatenate(
                    [session.run(None, dict(inputs))[0][:, None] for inputs, _ in batches]
                )
                found[f"{part}/targets"] = np.asarray(split.targets)
            np.savez(path, **found)  # type: ignore[arg-type]
            right = (found[f"test/{RIVALS[name].size}"][:, 0].argmax(-1) == found["test/targets"]).mean()
            print(f"{name}, fold {fold}, int8: {100 * right:.1f} %", flush=True)


def times(options: argparse.Namespace) -> None:
    """Write seconds per call of the first fold's networks, each exit alone, in float32 and eight bits, in turn."""
    found: dict[str, dict[str, float]] = {}
    sessions: dict[tuple[str, int], Any] = {}
    for name, rival in RIVALS.items():
        if not (options.out / f"{stem_of(name, 0)}.safetensors").exists() or rival.sizes:
            continue
        model = network_of(name, 0, options)
        for exit in range(model.exits):
            sessions[f"{name}/{exit}", rival.size] = open_session(onnx_of_exit(model, exit))
        graph = options.out / f"{stem_of(name, 0)}-int8.onnx"
        if graph.exists():
            sessions[f"{name}, int8/0", rival.size] = open_session(graph.read_bytes())
    for name, size in (("lite0", 96), ("lite2", 96), ("lite0", 160)):  # whatever the weights are
        sessions[f"{name}@{size}/0", size] = open_session(onnx_of_exit(network_of(name, 0, options, size), 0))
    for batch, rounds in ((1, 300), (64, 15)):
        functions = {}
        for (what, size), session in sessions.items():
            images = np.random.default_rng(0).normal(size=(batch, 3, size, size)).astype(np.float32)
            functions[what] = partial(session.run, None, {session.get_inputs()[0].name: images})
        for what, seconds in interleaved_seconds(functions, rounds).items():
            percentiles = np.percentile(seconds, [50, 95, 99]).tolist()
            found.setdefault(what, {}).update(
                zip((f"p50/{batch}", f"p95/{batch}", f"p99/{batch}"), percentiles, strict=True)
            )
    for what, each in found.items():
        print(what, {key: f"{1000 * value:.2f} ms" for key, value in each.items()})
    (options.out / "times.json").write_text(json.dumps({"times": found, "machine": machine()}, indent=1))


POLICIES = ("lite2 with exits", "lite0, then lite2", "lite0, then lite2, int8", "lite0 at 96, then 160")
"""Chains that are timed as they run, by max-probability at the middle time."""


def policies(options: argparse.Namespace) -> None:
    """Write seconds per photo of the first fold's policies, on its test photos, one by one and 64 at a time, in turn
    with the networks that they are made of."""
    SOURCES.append(kept_or_read(FolderSource(options.data, 3, 128, None, ImageLedger()), 128))
    splits = splits_of("flowers", SOURCES, settings_of(RIVALS["lite0"], options.data, options.weights, 0), 0)
    photos = torch.cat([images for images, _ in splits.test.batches(EVALUATION_BATCH)])
    timed = json.loads((options.out / "times.json").read_text())["times"]
    runners: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in POLICIES:
            bundle = Path(folder, name)
            side = _bundle_of(CHAINS[name], options, timed, splits.calibration, bundle)
            runners[name] = (ew.OnnxRunner(bundle), resized(photos, side).numpy())
        for name in ("lite0", "lite2"):
            session = open_session(onnx_of_exit(network_of(name, 0, options), 0))
            runners[name] = (partial(_alone, session), photos.numpy())
        found: dict[str, dict[str, float]] = {}
        for batch in (1, 64):
            starts = range(0, len(photos) - batch + 1, batch)
            calls = {
                what: _each_in_turn(runner, [images[start : start + batch] for start in starts])
                for what, (runner, images) in runners.items()
            }
            for what, seconds in interleaved_seconds(calls, len(starts)).items():
                percentiles = [float(np.mean(seconds)), *np.percentile(seconds, [50, 95, 99]).tolist()]
                names = (f"{each}/{batch}" for each in ("mean", "p50", "p95", "p99"))
                found.setdefault(what, {}).update(zip(names, percentiles, strict=True))
    for what, each in found.items():
        print(what, {key: f"{1000 * value:.2f} ms" for key, value in each.items()})
    (options.out / "policies.json").write_text(json.dumps({"times": found, "machine": machine()}, indent=1))


def _bundle_of(
    parts: Sequence[Part],
    options: argparse.Namespace,
    seconds: Mapping[str, Mapping[str, float]],
    held: Split,
    to: Path,
) -> int:
    """Export the first fold's chain for the middle time; return the side of its photos."""
    read = [logits_from(options.out, part, 0, "calibration") for part in parts]
    logits, targets, costs = np.stack([each for each, _ in read], 1), read[0][1], seconds_to(parts, seconds)
    fitted = fit_and_read("max-probability", logits, targets, costs, temperature=True)
    policy, _ = calibrate_macs(fitted.confidences, costs, min(middle_time(seconds), costs[-1]))
    names = list(dict.fromkeys(part.name.removesuffix(", int8") for part in parts))
    networks = [network_of(name, 0, options) for name in names]
    sizes = [part.size for part in parts] if len(names) == 1 and len({part.size for part in parts}) > 1 else None
    model = networks[0] if len(networks) == 1 and sizes is None else ew.cascade(*networks, sizes=sizes)
    calibration = ew.Calibration.of(policy.read_by(fitted.measure), model.exit_macs)
    classes, side = list(map(str, range(CLASSES))), max(part.size for part in parts)
    if parts[0].name.endswith(", int8"):
        batches = [(resized(images, side), targets) for images, targets in held.batches(EVALUATION_BATCH)]
        wish = float(np.array(model.exit_macs)[policy.exit_of(fitted.confidences)].mean())
        ew.export(model, ew.calibrate(model, batches, macs=wish), to, classes=classes, int8="static", held_out=batches)
    else:
        ew.export(model, calibration, to, classes=classes)
    return side


def _alone(session: Any, photos: np.ndarray) -> Any:
    return session.run(None, {session.get_inputs()[0].name: photos})


def _each_in_turn(runner: Callable[[np.ndarray], Any], chunks: Sequence[np.ndarray]) -> Callable[[], Any]:
    """Return a call that runs the next chunk each time it is called."""
    waiting = itertools.cycle(chunks)
    return lambda: runner(next(waiting))


class Part(NamedTuple):
    """An exit of a network that was tuned, at a size of images."""

    name: str
    exit: int
    size: int

    @property
    def timed(self) -> str:
        """What its time goes by: that of the same network tuned for the size, if it was tuned for several."""
        name, several, _ = self.name.partition(", sizes")
        return f"{name}@{self.size}/{self.exit}" if several else f"{name}/{self.exit}"


STATIC = {
    "lite0": Part("lite0", 0, 128),
    "lite0, int8": Part("lite0, int8", 0, 128),
    "lite0 at 160": Part("lite0@160", 0, 160),
    "lite2": Part("lite2", 0, 128),
    "lite2, int8": Part("lite2, int8", 0, 128),
    "lite2 at 160": Part("lite2@160", 0, 160),
    "lite2 at 160, int8": Part("lite2@160, int8", 0, 160),
    **{f"lite0, exit {k + 1} alone": Part("lite0, exits", k, 128) for k in range(4)},
    **{f"lite2, exit {k + 1} alone": Part("lite2, exits", k, 128) for k in range(4)},
}
CHAINS = {
    "lite0 with exits": [Part("lite0, exits", k, 128) for k in range(4)],
    "lite2 with exits": [Part("lite2, exits", k, 128) for k in range(4)],
    "lite0, then lite2": [Part("lite0", 0, 128), Part("lite2", 0, 128)],
    "lite0, then lite2, int8": [Part("lite0, int8", 0, 128), Part("lite2, int8", 0, 128)],
    "lite0, then lite2 at 160": [Part("lite0", 0, 128), Part("lite2@160", 0, 160)],
    "lite0, then lite2 at 160, int8": [Part("lite0, int8", 0, 128), Part("lite2@160, int8", 0, 160)],
    "lite0 at 160, then lite2 at 160": [Part("lite0@160", 0, 160), Part("lite2@160", 0, 160)],
    "lite0 at 96, then 160": [Part("lite0, sizes", 0, 96), Part("lite0, sizes", 0, 160)],
    "lite2 at 96, then 160": [Part("lite2, sizes", 0, 96), Part("lite2, sizes", 0, 160)],
}
LATER = {
    "lite0's third exit, then lite2": [Part("lite0, exits", 2, 128), Part("lite2", 0, 128)],
    "lite0's third exit, then lite2's last": [Part("lite0, exits", 2, 128), Part("lite2, exits", 3, 128)],
    "lite0's third exit, then lite2's third": [Part("lite0, exits", 2, 128), Part("lite2, exits", 2, 128)],
    "lite0's exits, then lite2's last": [
        *(Part("lite0, exits", k, 128) for k in (1, 2)),
        Part("lite2, exits", 3, 128),
    ],
}
"""Cascades of exited networks: put in after the others had been looked at on test images, also by what these said."""

ANSWERS = ("max-probability", "running-ensemble", "fitted-ensemble")
"""Measures: the second answer in place of the first, both averaged by cost, both averaged as calibration images say."""


class Result(NamedTuple):
    """How a row does over the folds: accuracy on calibration images, who is right on which test photo, mean seconds."""

    calibration: float
    right: np.ndarray
    seconds: float
    shares: list[float]


def logits_from(out: Path, part: Part, fold: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return logits (N, C) and targets (N)."""
    name, eight, _ = part.name.partition(", int8")
    found = np.load(out / f"{stem_of(name, fold)}{'-int8' if eight else ''}.npz")
    return found[f"{split}/{part.size}"][:, part.exit], found[f"{split}/targets"]


def seconds_to(parts: Sequence[Part], seconds: Mapping[str, Mapping[str, float]]) -> list[float]:
    """Return the time to leave at each part, one after the other; later exits of one network contain earlier ones."""
    total, found, former = 0.0, [], None
    for part in parts:
        here = seconds[part.timed]["p50/1"]
        if former is not None and former.name == part.name and former.size == part.size:
            total -= seconds[former.timed]["p50/1"]
        total += here
        found.append(total)
        former = part
    return found


def leaving_early(
    parts: Sequence[Part], measure: str, budget: float, out: Path, seconds: Mapping[str, Mapping[str, float]]
) -> Result | None:
    """Return how a chain of exits does within a mean time; None if its first part takes longer."""
    costs = seconds_to(parts, seconds)
    if costs[0] > budget:
        return None
    accuracies, right, taken = [], [], []
    for fold in range(FOLDS):
        read = {split: [logits_from(out, part, fold, split) for part in parts] for split in ("calibration", "test")}
        logits = {split: np.stack([each for each, _ in found], 1) for split, found in read.items()}
        targets = {split: found[0][1] for split, found in read.items()}
        fitted = fit_and_read(measure, logits["calibration"], targets["calibration"], costs, temperature=True)
        limit = min(budget, costs[-1])
        policy, _ = calibrate_macs(fitted.confidences, costs, limit, fitted.measure.family)
        held = Outputs(fitted.confidences, fitted.predictions, targets["calibration"])
        accuracies.append(operate(held, policy, costs).accuracy)
        left = Outputs.from_logits(logits["test"], targets["test"], fitted.measure).under(policy)
        right.append(left.predictions == targets["test"])
        taken.append(left.exits)
    exits = np.concatenate(taken)
    shares = (np.bincount(exits, minlength=len(parts)) / len(exits)).tolist()
    return Result(float(np.mean(accuracies)), np.concatenate(right), float(np.array(costs)[exits].mean()), shares)


def standing(part: Part, out: Path, seconds: Mapping[str, Mapping[str, float]]) -> Result:
    """Return how a network without exits does."""
    found = {split: [logits_from(out, part, fold, split) for fold in range(FOLDS)] for split in ("calibration", "test")}
    right = {split: [logits.argmax(-1) == targets for logits, targets in each] for split, each in found.items()}
    calibration = float(np.mean([each.mean() for each in right["calibration"]]))
    return Result(calibration, np.concatenate(right["test"]), seconds[part.timed]["p50/1"], [1.0])


def middle_time(seconds: Mapping[str, Mapping[str, float]]) -> float:
    """Return the time that policies are made for: the geometric middle between the two networks', one by one."""
    return float((seconds["lite0/0"]["p50/1"] * seconds["lite2/0"]["p50/1"]) ** 0.5)


def table(options: argparse.Namespace) -> None:
    """Print all rows, and the best of each kind by calibration images, at the middle time."""
    timed = json.loads((options.out / "times.json").read_text())
    seconds = timed["times"]
    budget = middle_time(seconds)
    static = {name: standing(part, options.out, seconds) for name, part in STATIC.items()}
    ours = {
        f"{name}, {measure}": result
        for name, parts in (CHAINS | LATER).items()
        for measure in ANSWERS
        if (result := leaving_early(parts, measure, budget, options.out, seconds)) is not None
    }
    figures: dict[str, Any] = {"budget": budget, "times": timed, "rows": {}}
    if (options.out / "policies.json").exists():
        figures["policies"] = json.loads((options.out / "policies.json").read_text())
    print(f"time: {1000 * budget:.2f} ms, one photo at a time\n{'':54}{'ms':>6} {'calibration':>12} {'test':>6}")
    for name, result in {**static, **ours}.items():
        mark = "" if result.seconds <= budget * 1.02 else "slower"
        shares = "" if name in static else "/".join(f"{100 * share:.0f}" for share in result.shares)
        accuracy = float(result.right.mean())
        numbers = f"{1000 * result.seconds:6.2f} {100 * result.calibration:12.1f} {100 * accuracy:6.1f}"
        print(f"{name:54}{numbers} {shares} {mark}")
        figures["rows"][name] = {**result._asdict(), "right": None, "test": accuracy}
    allowed = {name: result for name, result in static.items() if result.seconds <= budget}
    rival = max(allowed, key=lambda name: allowed[name].calibration)
    for kind, rows in (("planned", CHAINS), ("cascades of exited networks too", CHAINS | LATER)):
        names = [name for name in ours if name.rsplit(", ", 1)[0] in rows]
        best = max(names, key=lambda name: ours[name].calibration)
        differences = ours[best].right.astype(float) - allowed[rival].right
        half = 1.96 * differences.std() / len(differences) ** 0.5
        said = f"{100 * differences.mean():+.2f} ± {100 * half:.2f} points"
        print(f"{kind}: {best} against {rival}: {said}")
        figures[kind] = {"ours": best, "static": rival, "difference": float(differences.mean()), "half": float(half)}
    if options.json is not None:
        record = {"figures": figures, "machine": machine(), "command": sys.argv}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


TASKS = {"train": train, "int8": int8, "time": times, "policies": policies, "table": table}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rivals", nargs="*")
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    TASKS[options.task](options)


if __name__ == "__main__":
    main()
