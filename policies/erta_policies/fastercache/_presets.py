"""The settings of FasterCache's released scripts, by model."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from erta_policies.fastercache._rules import (
    AttentionRule,
    GuidanceRule,
    Preset,
    Ramp,
    make_constant,
)

Grows = tuple[float, int]
"""By how much frequencies grow, and the counter up to which or from which they do."""


def make_preset(
    steps: int,
    attention: AttentionRule,
    *,
    since: int,
    kept_from: int,
    low: Grows,
    high: Grows,
    period: int = 5,
    until: int | None = None,
    base: int = 1,
) -> Preset:
    """The settings of one model: those of attention, and those of guidance as `GuidanceRule`."""
    guidance = GuidanceRule(
        since=since,
        period=period,
        kept_from=kept_from,
        low=low[0],
        low_until=low[1],
        high=high[0],
        high_from=high[1],
        until=until,
    )
    return Preset(steps=steps, base=base, attention=attention, guidance=guidance)


def every_second(since: int, kept_from: int, weight: Ramp, text: bool = True) -> AttentionRule:
    """Attention is reused at even counters."""
    return AttentionRule(
        since=since, divisor=2, multiples=True, kept_from=kept_from, weight=weight, text=text
    )


def two_of_three(since: int, kept_from: int, weight: Ramp) -> AttentionRule:
    """Attention runs at the multiples of 3 and is reused at all other counters."""
    return AttentionRule(
        since=since, divisor=3, multiples=False, kept_from=kept_from, weight=weight
    )


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "open-sora-1.2": make_preset(
            30,
            every_second(8, 5, Ramp(slope=0.9 / 20, zero=7, most=float("inf"))),
            since=12,
            kept_from=10,
            low=(1.15, 25),
            high=(1.15, 20),
        ),
        "open-sora-plan-1.1": make_preset(
            150,
            # 42 in one of the released classes; the first reuse needs those of 44 and 45
            two_of_three(45, 40, make_constant(0.3)),
            since=40,
            period=6,
            kept_from=39,
            low=(1.1, 130),
            high=(1.2, 131),
        ),
        "latte": make_preset(
            50,
            every_second(16, 13, make_constant(0.5)),
            since=18,
            kept_from=16,
            low=(1.1, 44),
            high=(1.1, 45),
        ),
        "cogvideox": make_preset(
            50,
            two_of_three(18, 15, make_constant(0.3)),
            since=18,
            kept_from=16,
            low=(1.1, 40),
            high=(1.1, 30),
        ),
        "mochi": make_preset(
            64,
            every_second(20, 5, Ramp(slope=1 / 63, least=0.5), text=False),
            base=0,
            since=22,
            kept_from=20,
            low=(1.15, 50),
            high=(1.25, 30),
            until=63,
        ),
        "vchitect-2.0": make_preset(
            100,
            every_second(31, 0, make_constant(0.0)),
            since=31,
            kept_from=0,
            low=(1.05, 79),
            high=(1.1, 61),
        ),
    }
)
"""The settings of the released scripts of Vchitect/FasterCache, by model."""
