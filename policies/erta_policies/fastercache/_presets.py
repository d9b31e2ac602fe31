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

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "open-sora-1.2": Preset(
            steps=30,
            attention=AttentionRule(
                since=8,
                divisor=2,
                multiples=True,
                kept_from=5,
                weight=Ramp(slope=0.9 / 20, zero=7, most=float("inf")),
            ),
            guidance=GuidanceRule(
                since=12,
                period=5,
                kept_from=10,
                low=1.15,
                low_until=25,
                high=1.15,
                high_from=20,
            ),
        ),
        "open-sora-plan-1.1": Preset(
            steps=150,
            attention=AttentionRule(
                since=45,
                divisor=3,
                multiples=False,
                # 42 in one of the released classes; the first reuse needs those of 44 and 45
                kept_from=40,
                weight=make_constant(0.3),
            ),
            guidance=GuidanceRule(
                since=40,
                period=6,
                kept_from=39,
                low=1.1,
                low_until=130,
                high=1.2,
                high_from=131,
            ),
        ),
        "latte": Preset(
            steps=50,
            attention=AttentionRule(
                since=16, divisor=2, multiples=True, kept_from=13, weight=make_constant(0.5)
            ),
            guidance=GuidanceRule(
                since=18,
                period=5,
                kept_from=16,
                low=1.1,
                low_until=44,
                high=1.1,
                high_from=45,
            ),
        ),
        "cogvideox": Preset(
            steps=50,
            attention=AttentionRule(
                since=18, divisor=3, multiples=False, kept_from=15, weight=make_constant(0.3)
            ),
            guidance=GuidanceRule(
                since=18,
                period=5,
                kept_from=16,
                low=1.1,
                low_until=40,
                high=1.1,
                high_from=30,
            ),
        ),
        "mochi": Preset(
            steps=64,
            base=0,
            attention=AttentionRule(
                since=20,
                divisor=2,
                multiples=True,
                kept_from=5,
                weight=Ramp(slope=1 / 63, least=0.5),
                text=False,
            ),
            guidance=GuidanceRule(
                since=22,
                period=5,
                kept_from=20,
                low=1.15,
                low_until=50,
                high=1.25,
                high_from=30,
                until=63,
            ),
        ),
        "vchitect-2.0": Preset(
            steps=100,
            attention=AttentionRule(
                since=31, divisor=2, multiples=True, kept_from=0, weight=make_constant(0.0)
            ),
            guidance=GuidanceRule(
                since=31,
                period=5,
                kept_from=0,
                low=1.05,
                low_until=79,
                high=1.1,
                high_from=61,
            ),
        ),
    }
)
"""The settings of the released scripts of Vchitect/FasterCache, by model."""
