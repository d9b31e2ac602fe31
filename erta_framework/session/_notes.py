"""Notes of a request: settings that work, and that are known to work badly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from erta_framework.session._step import SessionInfo

if TYPE_CHECKING:
    from erta_framework.plugins import Policy


def list_notes(policies: Sequence[Policy], session: SessionInfo) -> tuple[str, ...]:
    """What a user should know of these policies in this request, in words.

    Args:
        policies: Those of the engine.
        session: Facts of the request.
    """
    if session.reused == "residual":
        return ()
    predicts = f"predicts {session.prediction}" if session.prediction else "seems to predict noise"
    return tuple(
        f"{policy.name} reuses residuals, but this network {predicts}: its residuals hold the "
        "latents of another noise level, which costs many dB; leave the predictor out to reuse "
        "the output"
        for policy in policies
        if policy.traits.reads_residual
    )
