"""When attention is reused and when a branch is left out, by a counter of steps."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor


@dataclass(frozen=True, slots=True, kw_only=True)
class Ramp:
    """A weight that is a line over the counter of steps, and at least `least` or at most `most`.

    Attributes:
        slope: Growth a step.
        zero: Counter at which the line is 0.
        least: No weight is less.
        most: No weight is more.

    Example:
        >>> Ramp(slope=0.1, zero=7).at(12)
        0.5
    """

    slope: float
    zero: int = 0
    least: float = 0.0
    most: float = 1.0

    def at(self, counter: int) -> float:
        """The weight at a counter."""
        return min(self.most, max(self.least, self.slope * (counter - self.zero)))


def make_constant(weight: float) -> Ramp:
    """The same weight at every step."""
    return Ramp(slope=0.0, least=weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionRule:
    """When attention is reused, by the counter of the steps.

    Attributes:
        since: First counter at which it may be reused.
        divisor: What divides the counters that `multiples` speaks of.
        multiples: Whether the multiples of `divisor` are reused, or all others.
        kept_from: First counter at which outputs are kept.
        weight: w of `A_new + w (A_new - A_old)`.
        text: Whether also the text stream of joint attention is extrapolated, not only reused.
        until: Counters from here on run in any case; None is no limit.
    """

    since: int
    divisor: int
    multiples: bool
    kept_from: int
    weight: Ramp
    text: bool = True
    until: int | None = None

    def reuses(self, counter: int) -> bool:
        """Whether attention is reused where nothing else speaks against it."""
        inside = counter >= self.since and (self.until is None or counter < self.until)
        return inside and (counter % self.divisor == 0) == self.multiples


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidanceRule:
    """When the unconditional branch is left out, and what its bands are multiplied by there.

    Attributes:
        since: First counter at which it may be left out.
        period: It runs at the multiples of this.
        kept_from: First counter at which the difference is kept.
        low: Growth of the low frequencies at each step without the branch.
        low_until: Last counter at which they grow.
        high: Growth of the high frequencies.
        high_from: First counter at which they grow.
        until: Counters from here on run the branch in any case; None is no limit.
    """

    since: int
    period: int
    kept_from: int
    low: float
    low_until: int
    high: float
    high_from: int
    until: int | None = None

    def skips(self, counter: int) -> bool:
        """Whether the branch is left out."""
        inside = counter >= self.since and (self.until is None or counter < self.until)
        return inside and counter % self.period != 0

    def weights(self, counter: int) -> tuple[float, float]:
        """Growth of the low and of the high frequencies at a step without the branch."""
        low = self.low if counter <= self.low_until else 1.0
        return low, self.high if counter >= self.high_from else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """The published settings for one model.

    Attributes:
        steps: Number of steps that they are made for.
        base: Counter of the first step.
        attention: When attention is reused.
        guidance: When the unconditional branch is left out.
    """

    steps: int
    base: int = 1
    attention: AttentionRule
    guidance: GuidanceRule


def make_attention_rule(
    num_steps: int, *, start: float, interval: int, most: float
) -> AttentionRule:
    """Our general rule: from a part of the steps on, one in `interval` runs, and the last one.

    Counters begin at 0.
    """
    since = ceil(round(start * num_steps, 9))
    return AttentionRule(
        since=since,
        divisor=interval,
        multiples=False,
        kept_from=max(0, since - 2),  # those before all run, so these are the last two
        weight=Ramp(slope=1 / max(1, num_steps - 1), most=most),
        until=num_steps - 1,
    )


def make_guidance_rule(
    num_steps: int,
    *,
    start: float,
    period: int,
    low: float,
    high: float,
    low_until: float,
    high_from: float,
) -> GuidanceRule:
    """Our general rule: from a part of the steps on, one in `period` runs, and the last one.

    Counters begin at 0; the bounds of the bands are parts of the steps.
    """
    since = ceil(round(start * num_steps, 9))
    return GuidanceRule(
        since=since,
        period=period,
        kept_from=max(0, since - period),
        low=low,
        low_until=ceil(round(low_until * num_steps, 9)) - 1,
        high=high,
        high_from=floor(round(high_from * num_steps, 9)) + 1,
        until=num_steps - 1,
    )
