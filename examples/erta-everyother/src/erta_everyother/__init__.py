"""A whole plugin for erta_framework: one policy, registered by an entry point."""

from erta_framework import Decision, Policy, Reuse, Step, Traits, hookimpl
from erta_framework.errors import PolicyError


class EveryOther(Policy):
    """Computes every `period`-th step and reuses the last residual on the others.

    Source: ours, as the smallest example of a policy.

    Attributes:
        period: Distance of two computed steps; 1 computes all.

    Raises:
        PolicyError: The period is below 1.

    Example:
        >>> EveryOther(period=3)
        EveryOther(period=3)
    """

    traits = Traits(static=True)

    period: int = 2

    def __post_init__(self) -> None:
        if self.period < 1:
            raise PolicyError(f"EveryOther(period={self.period}): it must be at least 1")

    @hookimpl
    def decide(self, step: Step) -> Decision | None:
        """Reuse between the multiples of `period`; elsewhere leave it to the next policy."""
        return Reuse("period") if step.index % self.period else None
