"""torch.compile for the network's passes that reverse mode differentiates.

Forward mode, double backward and evaluation call the same module without it: see :func:`uncompiled`.
"""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

from exitwise.errors import UserError


def check_compiler(device: torch.device) -> None:
    """Raise UserError unless torch.compile can make code for a device: on a CPU that takes a C++ compiler."""
    if device.type != "cpu":
        return
    wanted = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
    if not any(shutil.which(name) for name in wanted):
        raise UserError(
            f"compile needs a C++ compiler ({' or '.join(wanted)}) on a CPU; found none: install one, or leave compile "
            "off"
        )


def compile_network(model: nn.Module) -> None:
    """Compile what ``model(inputs)`` does, in place; names and parameters stay.

    It is trained within :func:`~exitwise.training.flags.training_flags`.

    Raises:
        UserError: without a compiler.
    """
    check_compiler(next(model.parameters()).device)
    # Forward mode replays the pass as written, and with it the dropout masks: they must be drawn as there.
    model.compile(dynamic=False, options={"fallback_random": True})
