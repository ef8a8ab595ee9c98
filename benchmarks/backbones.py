"""What exits on a backbone save in time, against what their stages' times and their MACs promise.

    python benchmarks/backbones.py --check --json results/backbones.json

Images of which half leave at the first exit and the others at the end, through 224-pixel backbones with random weights,
in batches of 32 and one by one. Saving is 1 - cost / cost of the full network. Predicted from the stages: what each
stage takes alone on the images that reach it. All are timed in turn; medians.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import Bar, finish, parser
from savings import Form, Saving, measure_savings, recorded
from torch import Tensor

from exitwise import EarlyExitRunner, ExitPolicy, collect_outputs, count_cost, create_model
from exitwise.models.staged import StagedModel

BACKBONES = ("timm/resnet18", "timm/vit_tiny_patch16_224")
IMAGES = {32: 32, 1: 24}
"""Images in the stream, by batch size."""
BARS = {32: 0.9, 1: 0.95}


def median_policy(model: StagedModel, images: Tensor) -> ExitPolicy:
    """Half of the images leave at the first exit, the rest at the last."""
    outputs = collect_outputs(model, [(part, torch.zeros(len(part), dtype=torch.int64)) for part in images.split(8)])
    confidences = np.sort(outputs.confidences[:, 0])
    middle = len(confidences) // 2
    return ExitPolicy([confidences[middle - 1 : middle + 1].mean().item(), *[None] * (model.exits - 2)])


def eager(model: StagedModel, policy: ExitPolicy, exit_macs: tuple[int, ...]) -> Form:
    """The network as it is."""

    def step(k: int) -> Callable[[Tensor], object]:
        stage: Any = model.stages[k]
        return (lambda state: stage.head(stage.body(state))) if policy.can_leave(k) else stage.body

    steps = [step(k) for k in range(model.exits)]
    return Form(model, model.forward_last, EarlyExitRunner(model, policy, exit_macs), steps)


def stage_calls(model: StagedModel, policy: ExitPolicy, batches: list[Tensor]) -> list[tuple[int, Any]]:
    """What reaches each stage when images leave by the policy."""
    calls: list[tuple[int, Any]] = []
    runner = EarlyExitRunner(model, policy, (0,) * model.exits)
    runner._parts = [(recorded(body, calls, k), head) for k, (body, head) in enumerate(runner._parts)]
    for batch in batches:
        runner(batch)
    return calls


def measure(name: str, batch_size: int, rounds: int) -> Saving:
    """Savings of one backbone at one batch size."""
    torch.manual_seed(0)
    model = create_model(name, exits=4).eval()
    images = torch.randn(IMAGES[batch_size], *model.input_shape)
    policy, costs = median_policy(model, images), count_cost(model).macs
    batches = list(images.split(batch_size))
    with torch.inference_mode():
        form = eager(model, policy, costs)._replace(full=model.forward_last)
        return measure_savings(form, batches, stage_calls(model, policy, batches), costs, rounds)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=9, help="times that each batch is run")
    options = arguments.parse_args()
    results, bars = {}, []
    columns = ("full ms", "early ms", "saved", "stages", "MACs", "of stages", "of MACs")
    print(f"{'':28}{'batch':>6}" + "".join(f"{column:>10}" for column in columns))
    for name in BACKBONES:
        for batch_size, bar in BARS.items():
            saving = measure(name, batch_size, options.rounds)
            of_stages, of_macs = saving.measured / saving.by_stages, saving.measured / saving.by_macs
            times = [1000 * saving.full / batch_size, 1000 * saving.early / batch_size]
            row = [*times, *saving[3:], of_stages, of_macs]
            results[f"{name}, batch {batch_size}"] = dict(zip(columns, row, strict=True))
            print(f"{name:28}{batch_size:6}" + "".join(f"{value:10.3f}" for value in row), flush=True)
            bars.append(Bar(f"{name}, batch {batch_size}: measured / by stages", of_stages, bar, at_most=False))
    finish(options, {"rounds": options.rounds, "rows": results}, bars)


if __name__ == "__main__":
    main()
