"""What TeaCache runs with: published constants, given ones, or those of a profile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from erta_framework import Policy, Profile
from erta_framework.errors import PolicyError
from erta_policies.constants import published
from erta_policies.parts.change_profiler import calibrated_range
from erta_policies.parts.changes import Signal
from erta_policies.parts.profiles import loaded
from erta_policies.teacache.polynomial import KIND, fitted, value


@dataclass(frozen=True, slots=True)
class Source:
    """Where a polynomial comes from, and what was published beside it.

    Attributes:
        coefficients: The polynomial, highest power first.
        signal: Whose change it is a function of.
        threshold: A published threshold, if there is one.
        first: Steps at the start that are computed, or a part of them.
        last: Steps at the end that are computed.
        absolute: Whether its magnitude is taken.
        low: Smallest difference it was calibrated with, 0 where unknown.
        high: Largest, infinite where unknown.
    """

    coefficients: tuple[float, ...]
    signal: Signal
    threshold: float | None = None
    first: int | float = 1
    last: int = 1
    absolute: bool = False
    low: float = 0.0
    high: float = math.inf

    def change(self, difference: float, absolute: bool, clamp: bool) -> float:
        """Predicted change of the output; infinite where the difference says nothing."""
        if not math.isfinite(difference):
            return math.inf
        found = value(self.coefficients, difference)
        found = abs(found) if absolute else found
        return max(found, 0.0) if clamp else found

    def doubts(self, differences: Sequence[float]) -> str:
        """What makes these predictions doubtful, for the trace; empty if nothing does."""
        if any(not self.low <= d <= self.high for d in differences):
            return ", outside the calibrated range"
        if any(math.isfinite(d) and value(self.coefficients, d) < 0.0 for d in differences):
            return ", polynomial below 0"
        return ""


def of_model(model: str) -> Source:
    """The published polynomial of a model.

    Raises:
        PolicyError: Nothing was published for it.
    """
    found = published("teacache", model)
    thresholds = found["thresholds"]
    return Source(
        coefficients=tuple(map(float, found["coefficients"])),
        signal=cast(Signal, found["signal"]),
        threshold=float(thresholds[0]) if thresholds else None,
        first=float(found["fraction"]) if "fraction" in found else int(found["first"]),
        last=int(found["last"]),
        absolute=bool(found.get("absolute", False)),
    )


def of_profile(profile: Profile) -> Source:
    """The polynomial fitted to a profile, on its signal and range."""
    low, high = calibrated_range(profile)
    signal = cast(Signal, profile.fingerprint["signal"])
    return Source(fitted(profile), signal, low=low, high=high)


def source_of(
    policy: Policy,
    model: str | None,
    coefficients: tuple[float, ...] | None,
    profile: Profile | None,
    signal: Signal | None,
) -> Source:
    """The polynomial that a policy was given.

    Raises:
        PolicyError: It is for another signal than the one asked for.
    """
    if model is not None:
        found = of_model(model)
    elif coefficients is not None:
        found = Source(coefficients, signal or "modulated_input")
    else:
        assert profile is not None
        found = of_profile(profile)
    if signal is not None and signal != found.signal:
        raise PolicyError(
            f"{policy!r} asks for the signal {signal!r}, but its polynomial is for "
            f"{found.signal!r}; drop signal=..., or give coefficients of your own"
        )
    return found


def profile_of(policy: Policy, profile: str | Path | Profile | None) -> Profile:
    """The profile of a policy, read from its file if need be."""
    return loaded(policy, profile, (KIND,))
