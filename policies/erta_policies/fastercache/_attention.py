"""`AttentionExtrapolation`: attention continued along the line through its last two outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from erta_framework import Policy, Seam, SessionInfo, Step, Traits, hookimpl
from erta_framework.modules import (
    KEEP,
    Action,
    Parts,
    Place,
    ReuseKept,
    Select,
    Selection,
)
from erta_policies.fastercache._cfg_cache import CfgCache
from erta_policies.fastercache._presets import PRESETS
from erta_policies.fastercache._rules import make_attention_rule
from erta_policies.fastercache._schedules import AttentionPlan, plan_attention
from erta_policies.fastercache._settings import (
    check_at_least,
    check_parts,
    check_preset,
    find_preset,
)

GENERAL = ("interval", "start", "most")
"""Settings of the general rule."""
SELF_ATTENTION = Select(kind=("attention",))


class AttentionExtrapolation(Policy):
    """Dynamic feature reuse of FasterCache: self-attention is extrapolated at most other steps.

    A reused step does not run the module. Its output is `A_new + w (A_new - A_old)`, from the last
    two steps that ran it, and the block applies gate and residual of the current step. Nothing is
    kept at a reused step. With one kept output, that is reused as it is.

    A module runs if it has not run since the last step that the schedule runs it. Of a batch with
    both guidance branches every row counts: after a step without the unconditional rows, a full
    step runs the module. So branches are never mixed.

    Source: FasterCache, arXiv 2410.19355, and the scripts of Vchitect/FasterCache. The
    general rule is ours: w grows from 0 to 1 over the steps, as in the paper, but stays at `most`,
    because 1/2 continues a line where every second step runs.

    Attributes:
        preset: Settings of a released script, as in `CfgCache`; None for the general rule, which
            the three settings that follow belong to.
        interval: One in so many steps runs the modules.
        start: Part of the steps that all run at the start.
        most: The weight w is at most this.
        sites: Which modules.
        beside: The `CfgCache` of the same run: its full steps run attention where the newest kept
            output is of one branch, also where branches are calls of their own.

    Raises:
        PolicyError: A setting is out of range, or the preset is for another number of steps.

    Example:
        >>> AttentionExtrapolation(preset="vchitect-2.0").keeps()
        1
    """

    preset: str | None = None
    interval: int = 2
    start: float = 1 / 3
    most: float = 0.5
    sites: Select = SELF_ATTENTION
    beside: CfgCache | None = None

    traits = Traits(static=True, seams=frozenset({Seam.MODULE}))

    def __post_init__(self) -> None:
        check_preset(self, self.preset, GENERAL)
        check_at_least(self, interval=1, most=0.0)
        check_parts(self, "start")

    @property
    def selects(self) -> Sequence[Selection]:
        """The modules."""
        return (self.sites,)

    def keeps(self) -> int:
        """The last two outputs; the last one where w is 0 at every step."""
        if self.preset is None:
            return 2 if self.most else 1
        weight = PRESETS[self.preset].attention.weight
        return 2 if weight.slope or weight.least else 1

    def plan_modules(self, num_steps: int) -> AttentionPlan:
        """What becomes of the modules at each of so many steps.

        Raises:
            PolicyError: The preset is for another number.
        """
        skips: Sequence[bool] = (False,) * num_steps
        if self.beside is not None:
            skips = self.beside.plan_branches(num_steps).skips
        if self.preset is not None:
            preset = find_preset(self.preset, num_steps, self.name)
            return plan_attention(preset.attention, num_steps, preset.base, skips)
        rule = make_attention_rule(
            num_steps, start=self.start, interval=self.interval, most=self.most
        )
        return plan_attention(rule, num_steps, 0, skips)

    @property
    def _text(self) -> bool:
        return self.preset is None or PRESETS[self.preset].attention.text

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        plan = self.plan_modules(session.num_steps)
        session.state_of(self, lambda: plan)

    @hookimpl
    def assign(self, step: Step, call: Parts) -> Mapping[Place, Action]:
        plan = step.session.state_of(self, lambda: self.plan_modules(step.num_steps))
        if step.index < plan.kept_from:
            return {}
        return {place: self._choose(plan, step, call, place) for place in call.sites}

    def _choose(self, plan: AttentionPlan, step: Step, call: Parts, place: Place) -> Action:
        age, weight = call.age(place), plan.weights[step.index]
        if weight is None or age is None or step.index - age < plan.newest[step.index]:
            return KEEP
        if not weight or len(call.kept(place)) < 2:
            return ReuseKept()
        return ReuseKept((1.0 + weight, -weight), rest=None if self._text else (1.0,))
