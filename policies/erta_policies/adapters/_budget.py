"""`Budget`: a cap on network calls."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field, replace

from erta_framework import Compute, Decision, Policy, Reuse, Step, Traits, hookimpl
from erta_framework.errors import PolicyError
from erta_framework.session import Call


@dataclass(slots=True)
class SpentCalls:
    """Computed steps of each sample so far, and the newest of them."""

    counts: list[int] = field(default_factory=list)
    newest: tuple[int, ...] = ()


class Budget(Policy):
    """Allows each sample at most `calls` network calls of each branch; all other steps are reused.

    It is a cap, not a plan: a rule that spends its calls early reuses until the end. Listed after
    adapters that force steps to compute, it leaves those steps alone; listed before them, it
    overrules them. The first step always computes and counts.

    Source: ours.

    Attributes:
        calls: Largest number of computed steps.

    Raises:
        PolicyError: It is less than 1.

    Example:
        >>> Budget(calls=20)
        Budget(calls=20)
    """

    traits = Traits(static=True)
    calls: int

    def __post_init__(self) -> None:
        if self.calls < 1:
            raise PolicyError(f"the budget is {self.calls} calls, it must be at least 1")

    @hookimpl(wrapper=True)
    def decide(self, step: Step, call: Call) -> Generator[None, Decision, Decision]:
        decision = yield
        spent = call.state_of(self, SpentCalls)
        now = call.history[0].steps(call.x.shape[0])
        if len(spent.counts) != len(now):
            spent.counts, spent.newest = [0] * len(now), (-1,) * len(now)
        pairs = list(zip(now, spent.newest, strict=True))
        spent.counts = [n + (a != b) for n, (a, b) in zip(spent.counts, pairs, strict=True)]
        spent.newest = now
        exhausted = [count >= self.calls for count in spent.counts]
        if not any(exhausted):
            return decision
        reason = f"budget of {self.calls} calls is spent"
        if all(exhausted):
            return (
                decision
                if isinstance(decision, Reuse) and decision.mask is None
                else Reuse(reason, decision.scope)
            )
        if isinstance(decision, Compute):
            return Reuse(reason, decision.scope, mask=exhausted)
        wanted = decision.mask if isinstance(decision.mask, tuple) else (True,) * len(now)
        mask = tuple(w or e for w, e in zip(wanted, exhausted, strict=True))
        return replace(decision, mask=mask)
