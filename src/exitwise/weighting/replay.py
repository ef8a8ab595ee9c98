"""What a training pass draws and reads besides its parameters, kept so that the pass can be run again as it was.

Random numbers come from the global generators of torch, Python and NumPy and from generators that modules hold. What
cannot be kept, such as a number that a module counts up by itself, is found by running the pass again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from exitwise.shapes import Float, Float64

Generator = torch.Generator | random.Random | np.random.Generator | np.random.RandomState


@dataclass(frozen=True)
class RandomState:
    """States of the generators that a forward pass on ``device`` draws from.

    Attributes:
        cpu, cuda: torch's.
        device: where the pass runs.
        python, numpy: the global generators' (see :func:`python_state`); None where they are not known.
        own: generators that modules hold, each with its state.
    """

    cpu: Tensor
    device: torch.device
    cuda: Tensor | None
    python: Float64[Tensor, "words"] | None = None
    numpy: Float64[Tensor, "words"] | None = None
    own: tuple[tuple[Generator, Any], ...] = ()

    @classmethod
    def capture(cls, device: torch.device, model: nn.Module | None = None) -> RandomState:
        """Return the states of now; of the generators that ``model``'s modules hold, too."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        own = tuple((each, _state_of(each)) for each in ([] if model is None else _generators(model)))
        return cls(torch.get_rng_state(), device, cuda, python_state(), numpy_state(), own)

    def is_current(self) -> bool:
        """Return whether nothing has been drawn from torch's generators since."""
        if self.cuda is not None and not torch.equal(self.cuda, torch.cuda.get_rng_state(self.device)):
            return False
        return torch.equal(self.cpu, torch.get_rng_state())

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Within the context, random numbers come again as they did; afterwards as if nothing had been drawn."""
        python, numpy = python_state(), numpy_state()
        own = [(generator, _state_of(generator)) for generator, _ in self.own]
        with torch.random.fork_rng(devices=[self.device] if self.cuda is not None else []):
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state(self.cuda, self.device)
            try:
                _restore(self.python, self.numpy, self.own)
                yield
            finally:
                _restore(python, numpy, own)


def python_state() -> Float64[Tensor, "words"]:
    """Return the state of :mod:`random`'s global generator, as numbers."""
    _, words, gauss = random.getstate()
    return torch.tensor([*words, gauss is not None, gauss or 0.0], dtype=torch.float64)


def set_python_state(state: Float64[Tensor, "words"]) -> None:
    """Set what :func:`python_state` gave."""
    *words, has_gauss, gauss = state.tolist()
    random.setstate((3, tuple(map(int, words)), gauss if has_gauss else None))


def numpy_state() -> Float64[Tensor, "words"]:
    """Return the state of NumPy's global generator, as numbers."""
    _, words, *rest = np.random.get_state()
    return torch.from_numpy(np.concatenate([np.asarray(words, np.float64), np.asarray(rest, np.float64)]))


def set_numpy_state(state: Float64[Tensor, "words"]) -> None:
    """Set what :func:`numpy_state` gave."""
    *words, position, has_gauss, gauss = state.tolist()
    np.random.set_state(("MT19937", np.asarray(words, np.uint32), int(position), int(has_gauss), gauss))


def _restore(python: Tensor | None, numpy: Tensor | None, own: Any) -> None:
    if python is not None:
        set_python_state(python)
    if numpy is not None:
        set_numpy_state(numpy)
    for generator, state in own:
        _set_state(generator, state)


def _generators(model: nn.Module) -> list[Generator]:
    held = (value for module in model.modules() for value in module.__dict__.values())
    return [value for value in held if isinstance(value, Generator)]


def _state_of(generator: Generator) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.bit_generator.state if isinstance(generator, np.random.Generator) else generator.get_state()


def _set_state(generator: Generator, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


TOLERANCE = 1e-3
"""Of losses, relative to 1 + the loss, between a pass and its repetition: kernels may differ in their rounding."""


def check_repeats(
    losses: Float[Tensor, "batch exits"],
    again: Float[Tensor, "batch exits"],
    model: nn.Module,
    run: Callable[[], object],
) -> None:
    """Raise ValueError unless a pass gave the same losses when it was run again.

    Args:
        losses: of the pass.
        again: of its repetition.
        model: the network; the error names the module of it that computes otherwise each time.
        run: runs the pass once more, as it was.
    """
    losses, again = losses.detach(), again.detach()
    finite = losses.isfinite() & again.isfinite()
    if not (((losses - again).abs() > TOLERANCE * (1 + losses.abs())) & finite).any():
        return
    raise ValueError(
        "expected the same losses when a training pass is run again, as the meta-gradient needs; "
        f"{_culprit(model, run)} (it may keep numbers in attributes that are no buffers, or draw from a generator out "
        "of reach)"
    )


def _culprit(model: nn.Module, run: Callable[[], object]) -> str:
    """Return which module computed otherwise in the second of two passes."""
    passes: list[list[tuple[str, list[Tensor]]]] = [[], []]
    names = {module: name for name, module in model.named_modules()}
    for seen in passes:

        def watch(module: nn.Module, args: Any, output: Any, seen: list[Any] = seen) -> None:
            tensors = [leaf.detach().clone() for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            seen.append((names[module], tensors))

        hooks = [module.register_forward_hook(watch) for module in names]
        try:
            with torch.no_grad():
                run()
        finally:
            for hook in hooks:
                hook.remove()
    for (name, first), (_, second) in zip(*passes, strict=False):
        if len(first) != len(second) or any(not torch.equal(a, b) for a, b in zip(first, second, strict=True)):
            return f"{name} ({type(model.get_submodule(name)).__name__}) computes otherwise each time"
    return f"{type(model).__name__} computed otherwise the second time"
