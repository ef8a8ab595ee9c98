"""Networks that have exits of their own, by name: their sizes, and what leaving at each exit costs.

Any classifier of some libraries can be given exits too: see ``catalogue/backbones.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exitwise.catalogue.entry import Entry
from exitwise.catalogue.lookup import by_name

_MSDNET, _RANET = "exitwise.models.msdnet:MSDNet", "exitwise.models.ranet:RANet"
_WIDE = "exitwise.models.wide:Wide"

_IMAGENET = {
    "num_classes": 1000,
    "step_mode": "even",
    "channels": 32,
    "growth": 16,
    "growth_factors": (1, 2, 4, 4),
    "bottleneck_factors": (1, 2, 4, 4),
    "stem": "imagenet",
    "head_channels": None,
    "input_shape": (3, 224, 224),
}


@dataclass(frozen=True)
class Model(Entry):
    """A network of a certain size.

    Attributes:
        options: arguments of its class, ``input_shape`` (channels, height, width) among them.
        params: number of its parameters.
        macs: multiply-accumulates to each exit, earlier exits included, for one image; as counted by
            :func:`~exitwise.models.cost.count_cost`.
    """

    options: Mapping[str, Any]
    params: int
    macs: tuple[int, ...]

    @property
    def exits(self) -> int:
        """Number of its exits."""
        return len(self.macs)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of its images."""
        return self.options["input_shape"]


MODELS = by_name(
    Model(
        "msdnet_small",
        "MSDNet for images of 8x8 pixels",
        _MSDNET,
        {
            "blocks": 4,
            "step": 2,
            "step_mode": "even",
            "channels": 4,
            "growth": 4,
            "growth_factors": (1, 2),
            "bottleneck_factors": (1, 2),
            "head_channels": 8,
            "input_shape": (1, 8, 8),
        },
        20060,
        (31376, 88864, 160432, 223808),
    ),
    Model(
        "msdnet_cifar_narrow",
        "MSDNet of 1.5M MACs, to compare methods with on a CPU",
        _MSDNET,
        {
            "channels": 8,
            "growth": 8,
            "growth_factors": (1, 2, 2),
            "bottleneck_factors": (1, 1, 1),
            "stem": "imagenet",
            "head_channels": 16,
            "input_shape": (3, 32, 32),
        },
        168810,
        (408480, 603968, 1050208, 1368960, 1511648),
    ),
    Model(
        "msdnet_cifar_5",
        "MSDNet for CIFAR, 5 blocks",
        _MSDNET,
        {"input_shape": (3, 32, 32)},
        2020874,
        (6781184, 14185984, 27244288, 41327616, 58030336),
    ),
    Model(
        "msdnet_cifar_7",
        "MSDNet for CIFAR, 7 blocks",
        _MSDNET,
        {"blocks": 7, "input_shape": (3, 32, 32)},
        3885394,
        (6781184, 14185984, 27006720, 48008192, 75842816, 108122624, 136484608),
    ),
    Model(
        "msdnet_cifar_even_7",
        "MSDNet for CIFAR, 7 blocks of 2 layers after the first",
        _MSDNET,
        {"blocks": 7, "base": 4, "step": 2, "step_mode": "even", "input_shape": (3, 32, 32)},
        2986690,
        (14955776, 25235968, 36745984, 45926400, 56876288, 66460160, 75407104),
    ),
    Model(
        "msdnet_cifar_even_11",
        "MSDNet for CIFAR, 11 blocks of 2 layers after the first",
        _MSDNET,
        {"blocks": 11, "base": 4, "step": 2, "step_mode": "even", "input_shape": (3, 32, 32)},
        5470050,
        (
            14955776,
            25235968,
            37433088,
            51621888,
            61687040,
            73521664,
            87125760,
            99391488,
            109444352,
            120971776,
            133973760,
        ),
    ),
    Model(
        "msdnet_imagenet_step4",
        "MSDNet for ImageNet, blocks of 4 layers",
        _MSDNET,
        {**_IMAGENET, "base": 4, "step": 4},
        23958440,
        (337214464, 681654272, 1003659008, 1249626240, 1355606016),
    ),
    Model(
        "msdnet_imagenet_step6",
        "MSDNet for ImageNet, blocks of 6 layers",
        _MSDNET,
        {**_IMAGENET, "base": 6, "step": 6},
        56529304,
        (511324160, 1166144768, 1838349440, 2494631424, 2735131968),
    ),
    Model(
        "msdnet_imagenet_step7",
        "MSDNet for ImageNet, blocks of 7 layers",
        _MSDNET,
        {**_IMAGENET, "base": 7, "step": 7},
        62314472,
        (612030976, 1430810112, 2276388096, 2959942016, 3246180864),
    ),
    Model(
        "ranet_small",
        "RANet for images of 8x8 pixels",
        _RANET,
        {
            "blocks": 1,
            "block_step": 1,
            "channels": 4,
            "growth": 4,
            "growth_factors": (2, 1),
            "bottleneck_factors": (2, 1),
            "scales": (1, 2),
            "head_channels": 8,
            "input_shape": (1, 8, 8),
        },
        8619,
        (47248, 80032),
    ),
    Model(
        "ranet_cifar_6",
        "RANet for CIFAR, 6 exits",
        _RANET,
        {"input_shape": (3, 32, 32)},
        2547601,
        (8316160, 21686784, 32695872, 41354048, 52924800, 58607744),
    ),
    Model(
        "ranet_cifar_8",
        "RANet for CIFAR, 8 exits",
        _RANET,
        {
            "step": 4,
            "step_mode": "even",
            "growth_factors": (4, 2, 1, 1),
            "bottleneck_factors": (4, 2, 1, 1),
            "scales": (1, 2, 3, 3),
            "input_shape": (3, 32, 32),
        },
        3261830,
        (15738112, 31173120, 44462208, 50152832, 60314944, 63302208, 89522560, 94247040),
    ),
    Model(
        "ranet_imagenet",
        "RANet for ImageNet, 8 exits",
        _RANET,
        {
            "num_classes": 1000,
            "step": 8,
            "step_mode": "even",
            "channels": 32,
            "growth": 16,
            "growth_factors": (4, 2, 2, 1),
            "bottleneck_factors": (4, 2, 2, 1),
            "scales": (1, 2, 3, 4),
            "stem": "imagenet",
            "head_channels": None,
            "input_shape": (3, 224, 224),
        },
        131123991,
        (244966400, 629504000, 858402856, 1039083784, 1866360676, 2156825764, 2728623199, 2822624635),
    ),
    Model(
        "wide_cifar",
        "wide, shallow residual network for CIFAR, fast on a CPU",
        _WIDE,
        {
            "widths": (16, 32, 64, 128, 256),
            "halved": (True, True, True, False),
            "head_convolutions": True,
            "identity": True,
            "input_shape": (3, 32, 32),
        },
        1582328,
        (8701184, 16961280, 25223936, 39384832),
    ),
    Model(
        "wide_grey",
        "wide, shallow residual network for grey images of 28x28 pixels, fast on a CPU",
        _WIDE,
        {"widths": (8, 16, 32, 64, 128), "halved": (True, True, True, False), "input_shape": (1, 28, 28)},
        300608,
        (1411520, 2766912, 4003136, 5996352),
    ),
    Model(
        "wide_signals",
        "shallow residual network for signals of 40 values",
        _WIDE,
        {"widths": (8, 8, 16, 32, 48), "kernel": 3, "input_shape": (1, 1, 40)},
        20656,
        (12640, 28320, 59680, 97504),
    ),
)
