"""The networks that the sweep tries, and how each is built: small, with random weights.

timm: the smallest variant of every family, as far as it has at most 60 M parameters; a family is what stands before the
first underscore. torchvision: its classifiers. Hugging Face: its image classifiers, and some of its text classifiers,
with tiny configurations.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

CLASSES = 10
SMALL = 128
"""Side of the images where a network takes any."""


class Built(NamedTuple):
    network: nn.Module
    example: Any


TIMM = (Path(__file__).parent / "sweep_timm.txt").read_text().split()

TORCHVISION = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3"),
    *("maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18"),
    *("resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vgg11_bn", "vit_b_16"),
    "wide_resnet50_2",
)

VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
VIT_64 = {**VIT, "image_size": 64, "patch_size": 8}
VISION = {"vision_config": VIT_64, "text_config": VIT}
PYRAMID = {"hidden_sizes": [16, 32, 40, 64], "depths": [2, 2, 2, 2], "num_attention_heads": [1, 2, 4, 4]}
SWIN = {"image_size": 64, "embed_dim": 16, "depths": [2, 2, 2], "num_heads": [1, 2, 4], "window_size": 4}
RESNET = {"embedding_size": 16, "hidden_sizes": [64, 96, 160, 256], "depths": [2, 2, 2, 2]}
PERCEIVER = {
    "num_latents": 128,
    "d_latents": 128,
    "num_self_attends_per_block": 12,
    "image_size": 32,
    "num_self_attention_heads": 4,
    "num_cross_attention_heads": 1,
}
TEXTNET = {
    "conv_layer_kernel_sizes": [[[3, 3], [3, 3]]] * 4,
    "conv_layer_strides": [[1, 2], [2, 1], [2, 1], [2, 1]],
    "hidden_sizes": [16, 16, 24, 32, 48],
    "stem_out_channels": 16,
    "image_size": [64, 64],
}

HF_IMAGES: dict[str, dict[str, Any]] = {
    "Beit": VIT_64,
    "Bit": {**RESNET, "num_groups": 8},
    "CLIP": VISION,
    "ConvNext": {"hidden_sizes": [16, 24, 32, 48], "depths": [2, 2, 3, 2]},
    "ConvNextV2": {"hidden_sizes": [16, 24, 32, 48], "depths": [2, 2, 3, 2]},
    "Cvt": {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 2, 4]},
    "Data2VecVision": VIT_64,
    "DeiT": VIT_64,
    "DeiT/ForImageClassificationWithTeacher": VIT_64,
    "Dinov2": {**VIT_64, "mlp_ratio": 2},
    "Dinov2WithRegisters": {**VIT_64, "mlp_ratio": 2},
    "DonutSwin": SWIN,
    "EfficientNet": {"width_coefficient": 0.5, "depth_coefficient": 1.0, "hidden_dim": 640, "image_size": 64},
    "FocalNet": {"image_size": 64, "embed_dim": 16, "hidden_sizes": [16, 32, 48, 48], "depths": [2, 2, 2, 2]},
    "HGNetV2": {},
    "Hiera": {"image_size": [128, 128], "embed_dim": 16, "depths": [1, 2, 3, 1], "num_heads": [1, 2, 4, 8]},
    "IJepa": VIT_64,
    "ImageGPT": {"n_embd": 32, "n_layer": 4, "n_head": 2, "n_positions": 64},
    "Levit": {"hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [2, 2, 2]},
    "Levit/ForImageClassificationWithTeacher": {
        "hidden_sizes": [32, 48, 64],
        "num_attention_heads": [2, 3, 4],
        "depths": [2, 2, 2],
    },
    "MetaClip2": VISION,
    "MobileNetV1": {"depth_multiplier": 0.5},
    "MobileNetV2": {"depth_multiplier": 0.5},
    "MobileViT": {"hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [8, 16, 16, 24, 32, 40, 80]},
    "MobileViTV2": {"width_multiplier": 0.5},
    "Perceiver/ForImageClassificationLearned": PERCEIVER,
    "Perceiver/ForImageClassificationFourier": PERCEIVER,
    "Perceiver/ForImageClassificationConvProcessing": PERCEIVER,
    "PoolFormer": {"hidden_sizes": [16, 32, 40, 64]},
    "PPLCNet": {"scale": 0.5},
    "Pvt": {**PYRAMID, "image_size": 64},
    "PvtV2": {**PYRAMID, "image_size": 64},
    "RegNet": {"embedding_size": 16, "hidden_sizes": [32, 48, 64, 96], "depths": [1, 2, 3, 1], "groups_width": 16},
    "ResNet": RESNET,
    "Segformer": PYRAMID,
    "Siglip": VISION,
    "Siglip2": {
        "vision_config": {**VIT, "num_patches": 64, "patch_size": 8},
        "text_config": VIT,
    },
    "SwiftFormer": {"depths": [2, 2, 3, 2], "embed_dims": [16, 24, 32, 48]},
    "Swin": SWIN,
    "Swinv2": SWIN,
    "TextNet": TEXTNET,
    "ViT": VIT_64,
    "ViTMSN": VIT_64,
}
"""Configuration by name; after a slash the end of the class's name, where it is not ForImageClassification.

Left out: shieldgemma2 (a language model that answers yes or no), dinat (needs another package), timm_wrapper (timm's).
"""


HF_TEXTS: dict[str, dict[str, Any]] = {
    "Albert": {**VIT, "embedding_size": 16},
    "Bert": VIT,
    "DebertaV2": VIT,
    "DistilBert": {"dim": 32, "n_layers": 4, "n_heads": 2, "hidden_dim": 64},
    "Electra": {**VIT, "embedding_size": 16},
    "GPT2": {"n_embd": 32, "n_layer": 4, "n_head": 2},
    "Llama": {**VIT, "num_key_value_heads": 1},
    "MPNet": VIT,
    "ModernBert": {**VIT, "global_attn_every_n_layers": 2},
    "Qwen2": {**VIT, "num_key_value_heads": 1},
    "Roberta": VIT,
    "XLMRoberta": VIT,
}
TOKENS = {"vocab_size": 100, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def build(part: str, name: str) -> Built:
    """Return a network of the sweep and example inputs."""
    torch.manual_seed(0)
    network, shape = BUILDERS[part](name)
    return Built(network.eval(), torch.zeros(1, *shape) if isinstance(shape, tuple) else shape)


def _timm(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    import timm

    config = timm.get_pretrained_cfg(name)
    channels, *size = config.input_size if config else (3, 224, 224)
    if config and not config.fixed_input_size and min(config.min_input_size or size) <= SMALL:
        small = [min(side, SMALL) for side in size]
        size = small if _takes(timm.create_model(name, num_classes=CLASSES), (channels, *small)) else size
    return timm.create_model(name, num_classes=CLASSES), (channels, *size)


def _takes(network: nn.Module, shape: tuple[int, ...]) -> bool:
    """Return whether a network takes images of this shape."""
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, *shape))
    except Exception:
        return False
    return True


def _torchvision(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    import torchvision

    size = {"inception_v3": 299, "maxvit_t": 224, "vit_b_16": 224}.get(name, SMALL)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, num_classes=CLASSES, **options), (3, size, size)


def _hf_texts(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    import transformers

    config = getattr(transformers, f"{name}Config")(num_labels=CLASSES, **TOKENS, **HF_TEXTS[name])
    network = getattr(transformers, f"{name}ForSequenceClassification")(config)
    ids = torch.randint(3, 100, (2, 16), generator=torch.Generator().manual_seed(0))
    return network, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _hf_images(name: str) -> tuple[nn.Module, Any]:
    import transformers

    base, _, ending = name.partition("/")
    config = getattr(transformers, f"{base}Config")(num_labels=CLASSES, **HF_IMAGES[name])
    network = getattr(transformers, f"{base}{ending or 'ForImageClassification'}")(config)
    if name == "ImageGPT":  # takes colours by number, pixel by pixel
        return network, {"input_ids": torch.randint(3, 500, (2, 64), generator=torch.Generator().manual_seed(0))}
    size = getattr(getattr(config, "vision_config", config), "image_size", 64)
    size = size if isinstance(size, int) else size[0]
    return network, (3, size, size)


BUILDERS: dict[str, Callable[[str], tuple[nn.Module, Any]]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "hf-images": _hf_images,
    "hf-texts": _hf_texts,
}

PARTS: dict[str, tuple[str, ...]] = {
    "timm": tuple(TIMM),
    "torchvision": TORCHVISION,
    "hf-images": tuple(HF_IMAGES),
    "hf-texts": tuple(HF_TEXTS),
}
QUICK: dict[str, tuple[str, ...]] = {
    "timm": ("resnet10t", "pit_ti_224"),
    "torchvision": ("mobilenet_v3_small", "googlenet"),
    "hf-images": ("ResNet", "Swin", "Data2VecVision"),
    "hf-texts": ("DistilBert", "Qwen2"),
}
"""One of each kind that needs something of its own."""
