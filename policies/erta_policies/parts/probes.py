"""Looking at the hidden states after the first blocks, the signal `probe:m` of the trunk seam."""

from __future__ import annotations

from torch import Tensor

from erta_framework import Call
from erta_framework.errors import PolicyError


def required_probe(depth: int) -> frozenset[str]:
    """What a policy requires to look at the hidden states after `depth` blocks."""
    return frozenset({f"signal:probe:{depth}"})


def probed(call: Call, depth: int) -> Tensor:
    """Hidden states after `depth` blocks, `[B, tokens, D]`; the blocks run once a call."""
    return call.feature(f"probe:{depth}")


def checked_depth(depth: int, owner: str) -> None:
    """Refuse a probe before the first block.

    Raises:
        PolicyError: The depth is less than 1.
    """
    if depth < 1:
        raise PolicyError(f"the depth of {owner} is {depth}, it must be at least 1 block")
