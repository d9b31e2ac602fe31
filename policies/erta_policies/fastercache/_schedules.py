"""What becomes of attention and of the unconditional branch, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from erta_policies.fastercache._rules import AttentionRule, GuidanceRule


@dataclass(frozen=True, slots=True)
class GuidancePlan:
    """What becomes of the unconditional branch, step by step.

    Attributes:
        skips: Whether it is left out.
        newest: The newest step up to this one at which it runs.
        kept_from: First step at which the difference is kept.
        weights: Growth of the low and of the high frequencies, where it is left out.
        splits: Whether a difference of this step needs its bands apart later.
    """

    skips: tuple[bool, ...]
    newest: tuple[int, ...]
    kept_from: int
    weights: tuple[tuple[float, float], ...]
    splits: tuple[bool, ...]


def plan_guidance(rule: GuidanceRule, num_steps: int, base: int, bands: bool) -> GuidancePlan:
    """A rule step by step; without bands, nothing grows."""
    counters = range(base, base + num_steps)
    skips = tuple(map(rule.skips, counters))
    weights = tuple(rule.weights(c) if bands else (1.0, 1.0) for c in counters)
    splits, needed = [], False
    for skipped, (low, high) in zip(reversed(skips), reversed(weights), strict=True):
        splits.append(needed)
        needed = skipped and (needed or low != high)
    return GuidancePlan(
        skips,
        find_newest_run(skips),
        rule.kept_from - base,
        weights,
        tuple(reversed(splits)),
    )


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """What becomes of attention, step by step.

    Attributes:
        weights: Weight of the extrapolation; None where attention runs.
        newest: The newest step up to this one at which it runs.
        kept_from: First step at which outputs are kept.
    """

    weights: tuple[float | None, ...]
    newest: tuple[int, ...]
    kept_from: int


def plan_attention(
    rule: AttentionRule, num_steps: int, base: int, skips: Sequence[bool]
) -> AttentionPlan:
    """A rule step by step.

    Where both branches run after a step without one, the newest output is of one branch alone. So
    attention runs there, whatever the rule says.

    Args:
        rule: The rule.
        num_steps: Number of steps.
        base: Counter of the first step.
        skips: Steps without the unconditional branch.
    """
    weights: list[float | None] = []
    whole = True  # the newest kept output is of both branches
    for counter, skipped in zip(range(base, base + num_steps), skips, strict=True):
        if rule.reuses(counter) and (skipped or whole):
            weights.append(rule.weight.at(counter))
        else:
            weights.append(None)
            whole = not skipped
    reused = tuple(weight is not None for weight in weights)
    return AttentionPlan(tuple(weights), find_newest_run(reused), rule.kept_from - base)


def find_newest_run(left_out: Sequence[bool]) -> tuple[int, ...]:
    """For every step, the newest one up to it that is not left out; 0 before the first.

    Example:
        >>> find_newest_run([False, True, False, True])
        (0, 0, 2, 2)
    """
    steps = (0 if skipped else index for index, skipped in enumerate(left_out))
    return tuple(accumulate(steps, max))
