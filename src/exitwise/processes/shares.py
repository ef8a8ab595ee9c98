"""What processes hold a share each of, as a whole for a checkpoint, and dealt again to those that resume from it.

These may be others in number. Knows tensors by name, and not what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from exitwise.processes.ranks import Ranks

Tensors = Mapping[str, Tensor]
States = Mapping[str, Tensor | None]


def gather_shares(shares: Tensors, ranks: Ranks) -> dict[str, Tensor]:
    """Return everyone's rows (N, ...) of each tensor, of which this process holds a share."""
    return {name: ranks.gather(share)[0] if ranks.dealt else share for name, share in shares.items()}


def deal_shares(wholes: Tensors, ranks: Ranks) -> dict[str, Tensor]:
    """Return this process's rows of each tensor: the inverse of :func:`gather_shares`."""
    return {
        name: whole.tensor_split(ranks.size)[ranks.rank] if ranks.dealt else whole for name, whole in wholes.items()
    }


def dealt_to(samples: int, ranks: Ranks) -> Ranks:
    """Return the processes as a half batch of that many samples is dealt to them: two each, or to everyone all."""
    return ranks if samples >= 2 * ranks.size else ranks.repeated()


def gather_states(states: States, ranks: Ranks) -> dict[str, Tensor | None]:
    """Return a row per process of what each has one of, such as a generator's state."""
    return {name: None if state is None else ranks.gather(state[None])[0] for name, state in states.items()}


def own_states(rows: States, ranks: Ranks) -> dict[str, Tensor | None]:
    """Return this process's row of each; of another number of processes, any will do."""
    return {name: None if states is None else states[ranks.rank % len(states)].clone() for name, states in rows.items()}
