"""Published plans with their ratios and scores, and the schedules of ToCa and DuCa.

All are of the official code, in the order of execution:

* ProCache: macovaseas/ProCache at 13d19c3. The port to PixArt reads its plan from the wrong end, so
  that a run of it is not this plan; here the plan is as it is written down.
* ToCa and DuCa: Shenyi-Z/ToCa at e84096f, for 50 steps of DDIM. There the interval is renewed
  inside the first block, so that this block has full steps of its own; here all blocks have those
  of the others. Tokens were scored by the attention that they receive; here by `TokenScore`'s norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from erta_framework.modules import Select
from erta_policies.procache._ratio import TokenRatio
from erta_policies.shared import FULL, SELECT, StepPlan, TokenScore

MODULES = Select(kind=("attention", "cross", "mlp"))
"""What plans are for, unless said otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A published plan and what goes with it.

    Attributes:
        plan: The plan.
        depth: Tokens are refreshed in blocks from this part of the depth on.
        ratio: How many.
        score: Which.
    """

    plan: StepPlan
    depth: float
    ratio: TokenRatio
    score: TokenScore


def plan_toca(num_steps: int, interval: int) -> StepPlan:
    """ToCa's schedule: full steps at an interval that shrinks, tokens refreshed at all others.

    The steps that are left, i, count down to 0. A step is full if it is the first, or if i is
    divisible by the interval, which each full step renews: `round(N / (1.4 - 0.8 i/T))`, and 2
    where i is from 0.2 T up to 0.4 T.

    Source: ToCa, arXiv 2410.05317, and its code; the full steps of all blocks but the first.

    Args:
        num_steps: T.
        interval: N.

    Example:
        >>> str(plan_toca(50, 3))
        'FSSSS (FSSS)x2 FSSSSS (FSS)x4 (FS)x9 F'
    """
    states, spacing = "", interval
    for index in range(num_steps):
        left = num_steps - 1 - index
        if not index or left % spacing == 0:  # as the first block sees it
            shrinking = round(interval / (1.4 - 0.8 * left / num_steps))
            spacing = 2 if 0.2 * num_steps <= left < 0.4 * num_steps else max(1, shrinking)
        states += FULL if not index or left % spacing == 0 else SELECT
    return StepPlan(states)


DIT = Preset(
    plan=StepPlan.parse("(FcSc)x6 (FcS)x4 (Fc)x7"),
    depth=0.75,
    ratio=TokenRatio(
        base=0.07, step_weight=2.0, layer_weight=-0.2, mlp=2.5, cross=0.0, from_end=True
    ),
    score=TokenScore(age_weight=0.25, age_scale=4.0, spread=0.6, cell=2),
)
PIXART = Preset(
    plan=StepPlan.parse("(FcS)x6 Fc"),
    depth=0.75,
    ratio=TokenRatio(base=0.3, step_weight=0.9, layer_weight=0.6, mlp=1.6, cross=0.6),
    score=TokenScore(age_weight=0.25, age_scale=3.0, spread=0.4, cell=4),
)
STEPS = 50


def make_toca(interval: int, alternate: bool) -> Preset:
    """ToCa with an interval; or DuCa, which refreshes tokens at every second step only."""
    plan = plan_toca(STEPS, interval)
    score = replace(DIT.score, age_scale=float(interval))
    plan = plan.without_select().with_select() if alternate else plan
    return Preset(plan=plan, depth=0.0, ratio=DIT.ratio, score=score)


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "dit-xl-2": DIT,
        "pixart-alpha": PIXART,
        **{f"toca-{n}": make_toca(n, alternate=False) for n in (2, 3, 4, 5)},
        **{f"duca-{n}": make_toca(n, alternate=True) for n in (2, 3, 4, 5)},
    }
)
"""Presets by name."""
