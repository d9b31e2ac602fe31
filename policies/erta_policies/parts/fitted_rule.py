"""`FittedChangeRule`: the base of change rules whose prediction was fitted, by others or by you."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

from erta_framework import Policy
from erta_framework.errors import PolicyError
from erta_policies.parts.change_rule import ChangeRule
from erta_policies.parts.changes import TIMES, Signal


class Fit(Protocol):
    """What was fitted, and what was published beside it."""

    @property
    def signal(self) -> Signal: ...

    @property
    def threshold(self) -> float | None: ...


def threshold_of(policy: Policy, published: float | None, what: str) -> float:
    """The threshold of a policy: its own setting, else the published one.

    Args:
        policy: With the setting `threshold`.
        published: That of its model; None if there is none.
        what: What it is compared with, for the message.

    Raises:
        PolicyError: There is neither.
    """
    own: float | None = getattr(policy, "threshold")  # noqa: B009
    found = own if own is not None else published
    if found is None:
        raise PolicyError(f"{policy!r} needs threshold=<{what}>; none was published")
    return found


class FittedChangeRule(ChangeRule):
    """Base of change rules on a published fit, one of your own, or that of a profile.

    A subclass has a setting `threshold`, and says in `source` what was fitted.
    """

    @cached_property
    def source(self) -> Fit:
        """What was fitted, and what was published beside it."""
        raise NotImplementedError(f"{type(self).__name__} does not say what was fitted")

    @property
    def effective_threshold(self) -> float:
        """The threshold that is used.

        Raises:
            PolicyError: There is none.
        """
        return threshold_of(self, self.source.threshold, "predicted change")

    @property
    def watched(self) -> Signal:
        """The signal of the fit."""
        return self.source.signal

    @property
    def apart(self) -> bool:
        """Never for signals of the timestep, which are alike in all branches."""
        return self.watched not in TIMES

    def prepare(self) -> None:
        _ = self.source, self.effective_threshold
