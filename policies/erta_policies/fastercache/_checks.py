"""Runs in which one branch cannot be made from the other."""

from __future__ import annotations

from erta_framework import Call, SessionInfo
from erta_framework.errors import CapabilityError
from erta_policies.shared import grid_dims


def refuse_divided(session: SessionInfo) -> None:
    """Refuse a run whose branches are evaluated by several ranks.

    Raises:
        CapabilityError: They are.
    """
    if session.divided:
        raise CapabilityError(
            "cfg_cache makes one guidance branch from the other, but here other ranks evaluate "
            "some of the branches (CFGParallel); remove one of them"
        )


def require_grid(session: SessionInfo) -> None:
    """Refuse latents that do not end in height and width.

    Raises:
        CapabilityError: Names their shape.
    """
    shape = session.shape
    grid = grid_dims(shape, session.channel_dim)
    if grid[-2:] != (len(shape) - 2, len(shape) - 1):
        raise CapabilityError(
            f"cfg_cache takes frequencies of height and width, but latents {shape} do not end "
            "in them, as packed tokens do not; set bands=False, which needs no grid"
        )


def require_division(call: Call) -> None:
    """Refuse a network that cannot run on some rows of its batch.

    Raises:
        CapabilityError: Says why it cannot.
    """
    why = call.compute.network.undivided
    if why:
        raise CapabilityError(
            f"cfg_cache runs the conditional rows of {call.model} alone, but it cannot run on part "
            f"of its batch: {why}; remove cfg_cache, or the policy inside the network that keeps "
            "this output"
        )
