"""From a number a sample to a decision."""

from __future__ import annotations

from collections.abc import Sequence

from erta_framework import Compute, Decision, Reuse


def below(values: Sequence[float], threshold: float, reason: str, scope: str = "step") -> Decision:
    """Reuse the samples whose value stays below the threshold, compute the others.

    Args:
        values: One a sample, `[B]`; or a single one that decides for the whole batch.
        threshold: At which the network runs.
        reason: A few words for the trace.
        scope: As in `Compute`.

    Example:
        >>> below([0.1, 0.9], 0.5, "change").mask
        (True, False)
    """
    mask = tuple(value < threshold for value in values)
    if all(mask):
        return Reuse(reason, scope)
    return Reuse(reason, scope, mask) if any(mask) else Compute(reason, scope)
