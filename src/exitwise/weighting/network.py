"""The weight-prediction network: a small MLP from a sample's losses (or confidences) to its weight at each exit.

It knows shapes only. How its gradient comes about is the business of ``gradient.py``.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from exitwise.processes.ranks import ALONE, Ranks
from exitwise.shapes import Float
from exitwise.weighting.normalize import Centering, weights_from_raw

WeightInput = Literal["loss", "conf", "both"]


class WeightNetwork(nn.Module):
    """Predicts the weight of each sample's loss at each exit (Han et al., ECCV 2022, section 3).

    An MLP with ReLU between its layers and tanh at its end gives raw values, which
    :func:`~exitwise.weighting.normalize.weights_from_raw` centres and scales.

    Args:
        exits: number of exits.
        hidden: width of the hidden layers (the paper's is 500).
        layers: number of hidden layers.
        inputs: what it sees of a sample: its losses, its confidences, or both (losses first).
        epsilon: scale of the weights; they stay within ``1 ± 2 * epsilon``.
        centering: the set over which weights average to 1: ``exits``, ``samples`` or ``all``.
        zero_init: start with the last layer at zero, so that every weight begins at exactly 1.

    Raises:
        ValueError: for an unknown ``inputs`` or ``centering``, or sizes below 1.
    """

    def __init__(
        self,
        exits: int,
        hidden: int = 500,
        layers: int = 1,
        inputs: WeightInput = "loss",
        epsilon: float = 0.8,
        centering: Centering = "exits",
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        if min(exits, hidden, layers) < 1:
            raise ValueError(f"exits, hidden and layers must be at least 1; got {exits}, {hidden}, {layers}")
        if inputs not in get_args(WeightInput):
            raise ValueError(f"inputs must be one of {', '.join(get_args(WeightInput))}; got {inputs!r}")
        if centering not in get_args(Centering):
            raise ValueError(f"centering must be one of {', '.join(get_args(Centering))}; got {centering!r}")
        self.inputs = inputs
        self.epsilon = epsilon
        self.centering = centering
        widths = [exits * (2 if inputs == "both" else 1), *[hidden] * layers]
        hidden_layers = [
            module for width_in, width_out in pairwise(widths) for module in (nn.Linear(width_in, width_out), nn.ReLU())
        ]
        last = nn.Linear(hidden, exits)
        if zero_init:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*hidden_layers, last, nn.Tanh())

    def forward(
        self, losses: Float[Tensor, "batch exits"], confidences: Float[Tensor, "batch exits"], ranks: Ranks = ALONE
    ) -> Float[Tensor, "batch exits"]:
        """Return weights from losses and confidences; neither receives a gradient.

        They are centred over the samples of all of ``ranks``.
        """
        features = {
            "loss": lambda: losses,
            "conf": lambda: confidences,
            "both": lambda: torch.cat([losses, confidences], dim=1),
        }[self.inputs]()
        with torch.autocast(features.device.type, enabled=False):
            return weights_from_raw(self.layers(features.detach()), self.epsilon, self.centering, ranks)
