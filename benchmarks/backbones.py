"""What exits on a backbone save in time, against what their stages' times and their MACs promise.

    python benchmarks/backbones.py --check --json results/backbones.json

Images of which half leave at the first exit and the others at the end, through 224-pixel backbones with random weights,
in batches of 32 and one by one. Saving is 1 - cost / cost of the full network. Predicted from the stages: what each
stage takes alone, on as many images, times the share that reaches it. All are timed in turn, batch by batch; medians
of batches with as many leaving.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from common import Bar, finish, parser
from torch import Tensor

from exitwise import EarlyExitRunner, ExitPolicy, collect_outputs, count_cost, create_model
from exitwise.models.staged import StagedModel
from exitwise.timing import interleaved_medians

BACKBONES = ("timm/resnet18", "timm/vit_tiny_patch16_224")
IMAGES = {32: 32, 1: 24}
"""Images in the stream, by batch size."""
BARS = {32: 0.9, 1: 0.95}


def median_policy(model: StagedModel, images: Tensor) -> ExitPolicy:
    """Half of the images leave at the first exit, the rest at the last."""
    outputs = collect_outputs(model, [(part, torch.zeros(len(part), dtype=torch.int64)) for part in images.split(8)])
    confidences = outputs.confidences[:, 0].sort().values
    middle = len(confidences) // 2
    return ExitPolicy([confidences[middle - 1 : middle + 1].mean().item(), *[None] * (model.exits - 2)])


def one_after_another(function: Callable[[Any], object], inputs: Sequence[Any]) -> Callable[[], object]:
    """Each call is on the next of the inputs."""
    stream = itertools.cycle(inputs)
    return lambda: function(next(stream))


def step(model: StagedModel, policy: ExitPolicy, k: int) -> Callable[[Tensor], object]:
    """What stage k computes under the policy."""
    stage = model.stages[k]
    return (lambda state: stage.head(stage.body(state))) if policy.can_leave(k) else stage.body


def measure(name: str, batch_size: int, rounds: int) -> dict[str, float]:
    """Savings of one backbone at one batch size."""
    torch.manual_seed(0)
    model = create_model(name, exits=4).eval()
    images = torch.randn(IMAGES[batch_size], *model.input_shape)
    policy = median_policy(model, images)
    costs = count_cost(model).macs
    runner = EarlyExitRunner(model, policy, costs)
    batches = images.split(batch_size)
    alike: dict[int, list[Tensor]] = {}
    with torch.inference_mode():
        for batch in batches:
            alike.setdefault(int(runner(batch).exit.eq(0).sum()), []).append(batch)
        states = [list(batches)]
        for stage in model.stages:
            states.append([stage.body(state) for state in states[-1]])
        functions = {
            "full": one_after_another(model.forward_last, batches),
            **{("early", count): one_after_another(runner, some) for count, some in alike.items()},
            **{("stage", k): one_after_another(step(model, policy, k), states[k]) for k in range(model.exits)},
        }
        seconds = interleaved_medians(functions, rounds * len(batches))
    full = seconds["full"]
    early = sum(len(some) * seconds["early", count] for count, some in alike.items()) / len(batches)
    left = sum(count * len(some) for count, some in alike.items()) / len(images)
    reach = [1.0] + [1 - left] * (model.exits - 1)
    predicted = 1 - sum(share * seconds["stage", k] for k, share in enumerate(reach)) / full
    measured = 1 - early / full
    by_macs = 1 - (left * costs[0] + (1 - left) * costs[-1]) / costs[-1]
    return {
        "full_ms_per_image": 1000 * full / batch_size,
        "early_ms_per_image": 1000 * early / batch_size,
        "leaving_first": left,
        "measured_saving": measured,
        "saving_by_stages": predicted,
        "saving_by_macs": by_macs,
        "measured_of_stages": measured / predicted,
        "measured_of_macs": measured / by_macs,
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=9, help="times that each batch is run")
    options = arguments.parse_args()
    results, bars = {}, []
    columns = ("full ms", "early ms", "saved", "stages", "MACs", "of stages", "of MACs")
    print(f"{'':28}{'batch':>6}" + "".join(f"{column:>10}" for column in columns))
    for name in BACKBONES:
        for batch_size, bar in BARS.items():
            row = measure(name, batch_size, options.rounds)
            results[f"{name}, batch {batch_size}"] = row
            figures = "".join(f"{value:10.3f}" for key, value in row.items() if key != "leaving_first")
            print(f"{name:28}{batch_size:6}{figures}", flush=True)
            figure = row["measured_of_stages"]
            bars.append(Bar(f"{name}, batch {batch_size}: measured / by stages", figure, bar, at_most=False))
    finish(options, {"rounds": options.rounds, "rows": results}, bars)


if __name__ == "__main__":
    main()
