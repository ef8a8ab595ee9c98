"""Prints, as Markdown, where the default four exits of backbones go and what leaving there costs.

    python benchmarks/exits_table.py

With random weights, so that nothing is downloaded.
"""

from __future__ import annotations

from typing import Any

from exitwise import count_cost, create_model

BACKBONES = (
    "timm/resnet18",
    "timm/resnet50",
    "timm/regnety_016",
    "timm/densenet121",
    "timm/mobilenetv3_large_100",
    "timm/efficientnet_b0",
    "timm/convnext_tiny",
    "timm/repvgg_a2",
    "timm/vit_tiny_patch16_224",
    "timm/vit_small_patch16_224",
    "timm/deit_small_distilled_patch16_224",
    "timm/swin_tiny_patch4_window7_224",
    "timm/mixer_b16_224",
    "timm/coatnet_0_rw_224",
    "timm/maxvit_tiny_tf_224",
    "torchvision/resnet18",
    "torchvision/vit_b_16",
    "torchvision/swin_t",
    "torchvision/efficientnet_b0",
    "torchvision/mobilenet_v3_small",
)


def main() -> None:
    print("| backbone | full | exits after | share of full MACs |\n|---|---|---|---|")
    for name in BACKBONES:
        model: Any = create_model(name, exits=4).eval()
        costs = count_cost(model).macs
        places = ", ".join(point.name for point in model.points)
        shares = ", ".join(f"{100 * cost / costs[-1]:.0f} %" for cost in costs[:-1])
        print(f"| {name} | {costs[-1] / 1e9:.2f}G | {places} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
