"""TeaCache's polynomial and constants: published, given, or of a profile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from erta_framework import Policy, Profile
from erta_framework.errors import PolicyError
from erta_policies.constants import read_published
from erta_policies.shared import Signal, load_profile, read_calibrated_range
from erta_policies.teacache._polynomial import KIND, evaluate_polynomial, fit_polynomial


@dataclass(frozen=True, slots=True)
class Source:
    """A polynomial with its signal and range, and what was published with it.

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
        """Predicted change of the output; infinite where the difference is not finite."""
        if not math.isfinite(difference):
            return math.inf
        found = evaluate_polynomial(self.coefficients, difference)
        found = abs(found) if absolute else found
        return max(found, 0.0) if clamp else found

    def doubts(self, differences: Sequence[float]) -> str:
        """Reasons to doubt these predictions, for the trace; empty if there are none."""
        if any(not self.low <= d <= self.high for d in differences):
            return ", outside the calibrated range"
        if any(
            math.isfinite(d) and evaluate_polynomial(self.coefficients, d) < 0.0
            for d in differences
        ):
            return ", polynomial below 0"
        return ""


def load_published_source(model: str) -> Source:
    """The published polynomial of a model.

    Raises:
        PolicyError: Nothing was published for it.
    """
    found = read_published("teacache", model)
    thresholds = found["thresholds"]
    return Source(
        coefficients=tuple(map(float, found["coefficients"])),
        signal=cast(Signal, found["signal"]),
        threshold=float(thresholds[0]) if thresholds else None,
        first=float(found["fraction"]) if "fraction" in found else int(found["first"]),
        last=int(found["last"]),
        absolute=bool(found.get("absolute", False)),
    )


def read_source(profile: Profile) -> Source:
    """The polynomial fitted to a profile, on its signal and range."""
    low, high = read_calibrated_range(profile)
    signal = cast(Signal, profile.fingerprint["signal"])
    return Source(fit_polynomial(profile), signal, low=low, high=high)


def resolve_source(
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
        found = load_published_source(model)
    elif coefficients is not None:
        found = Source(coefficients, signal or "modulated_input")
    else:
        assert profile is not None
        found = read_source(profile)
    if signal is not None and signal != found.signal:
        raise PolicyError(
            f"{policy!r} asks for the signal {signal!r}, but its polynomial is for "
            f"{found.signal!r}; drop signal=..., or give coefficients of your own"
        )
    return found


def profile_of(policy: Policy, profile: str | Path | Profile | None) -> Profile:
    """The profile of a policy, read from its file if need be."""
    return load_profile(policy, profile, (KIND,))
