"""The rules of one request of `PromptThreshold`, and how their decisions become one."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from erta_framework import Compute, Decision, Policy, Reuse
from erta_framework.errors import PolicyError


@dataclass(slots=True)
class TunedRules:
    """The rules of one request: one for each threshold, and which of them each sample follows.

    Attributes:
        rules: By threshold, rising; empty until the prompts were seen.
        choice: Threshold of each sample, or one for the whole batch.
        called: Branches called so far.
    """

    rules: dict[float, Policy] = field(default_factory=dict)
    choice: tuple[float, ...] = ()
    called: list[str] = field(default_factory=list)


def replace_settings(policy: Policy, **settings: Any) -> Policy:
    """The policy with other settings."""
    return dataclasses.replace(policy, **settings)


def merge_decisions(
    answers: dict[float, Decision | None], choice: Sequence[float], batch: int
) -> Decision | None:
    """The decision that follows each sample's own threshold.

    Args:
        answers: The rule's decision at each threshold.
        choice: Threshold of each sample, or one for all.
        batch: Number of samples.
    """
    if any(answer is None for answer in answers.values()):
        return None
    smallest = answers[min(choice)]
    assert smallest is not None
    reason = f"{smallest.reason}, threshold {min(choice):.3f}"
    if len(answers) == 1:
        return dataclasses.replace(smallest, reason=reason)
    keep = [is_reused(answers[choice[row]], row) for row in range(batch)]
    reason = f"{reason} to {max(choice):.3f}"
    if all(keep):
        return Reuse(reason, smallest.scope)
    return Reuse(reason, smallest.scope, keep) if any(keep) else Compute(reason, smallest.scope)


def is_reused(answer: Decision | None, row: int) -> bool:
    """Whether a decision reuses one sample."""
    if not isinstance(answer, Reuse):
        return False
    return True if answer.mask is None else bool(answer.mask[row])


def nest_wrappers(
    wrappers: Sequence[Generator[None, Tensor, Tensor]],
) -> Generator[None, Tensor, Tensor]:
    """One wrapper made of several; the first is the outermost."""
    if not wrappers:
        return (yield)
    first, rest = wrappers[0], wrappers[1:]
    next(first)
    output = yield from nest_wrappers(rest)
    try:
        first.send(output)
    except StopIteration as stop:
        found: Tensor = stop.value
        return found
    raise PolicyError("a wrapper of forward yielded twice")
