"""`CfgCache`: the unconditional branch made from the conditional one and their old difference."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from erta_framework import (
    Call,
    Decision,
    Needs,
    Policy,
    Reuse,
    Seam,
    SessionInfo,
    Step,
    Traits,
    hookimpl,
)
from erta_framework.errors import CapabilityError, PolicyError
from erta_framework.session import TWO_BRANCHES
from erta_policies.fastercache._bands import BranchDelta
from erta_policies.fastercache._checks import refuse_divided, require_division, require_grid
from erta_policies.fastercache._memory import GuidanceMemory, GuidanceRun
from erta_policies.fastercache._rows import BranchRows, find_rows
from erta_policies.fastercache._rules import GuidanceRule, make_guidance_rule
from erta_policies.fastercache._schedules import GuidancePlan, plan_guidance
from erta_policies.fastercache._settings import (
    check_at_least,
    check_parts,
    check_preset,
    find_preset,
)

GENERAL = ("period", "start", "low", "high", "low_until", "high_from")
"""Settings of the general rule."""


class CfgCache(Policy):
    """CFG-Cache of FasterCache: guidance runs one of its two branches at most steps.

    A full step computes both branches and keeps d = u - c. A skip step computes the conditional
    branch alone and makes the other as u = c + a_L d_L + a_H d_H, where d_L holds the low
    frequencies of d and d_H the rest. The factors are 1 at the full step, and each skip step
    multiplies them once more: the low frequencies early in sampling, the high ones late. Without
    `bands` both stay 1. That keeps the direction of guidance, and needs no grid.

    Branches may be calls of their own, of which the conditional one comes first, or rows of one
    batched call. It decides for the unconditional branch of computed steps, and leaves the rest to
    the policies listed after it, so list it first. A step that they reuse is reused as a whole.
    Where they leave out a full step, the next computed one makes up for it.

    Source: FasterCache, arXiv 2410.19355, equations 9 and 10, and the scripts of
    Vchitect/FasterCache. The general rule, `bands=False` and bands without a transform at skip
    steps, which linearity allows, are ours.

    Attributes:
        preset: Settings of a released script: `"open-sora-1.2"`, `"open-sora-plan-1.1"`,
            `"latte"`, `"cogvideox"`, `"mochi"` or `"vchitect-2.0"`; None for the general rule,
            which the six settings that follow belong to.
        period: One in so many steps is full.
        start: Part of the steps that are full at the start.
        low: Growth of the low frequencies at a skip step.
        high: Growth of the high frequencies.
        low_until: Part of the steps up to which the low ones grow.
        high_from: Part of the steps after which the high ones grow.
        bands: Whether bands grow; else the difference stays as it was.
        true_cfg: Whether to accept a network that is distilled for guidance, because the pipeline
            is given a negative prompt all the same.
        cond: Name of the conditional branch, where branches are calls of their own.
        uncond: Name of the branch that is left out.

    Raises:
        PolicyError: A setting is out of range, the preset is for another number of steps, or the
            run calls the branches in the other order.
        CapabilityError: The network is distilled for guidance, the run has no such branches, or
            bands are asked of latents without height and width.

    Example:
        >>> CfgCache(period=5).rule(50).since
        17
    """

    preset: str | None = None
    period: int = 5
    start: float = 1 / 3
    low: float = 1.1
    high: float = 1.1
    low_until: float = 0.8
    high_from: float = 0.7
    bands: bool = True
    true_cfg: bool = False
    cond: str = "cond"
    uncond: str = "uncond"

    @property
    def traits(self) -> Traits:
        needed = frozenset() if self.true_cfg else frozenset({TWO_BRANCHES})
        return Traits(
            requires=needed,
            seams=frozenset({Seam.LATENT}),
            memory=Needs(evaluations=1),
            decides="sample",
            static=True,
            sees_every_branch=True,
        )

    def __post_init__(self) -> None:
        check_preset(self, self.preset, GENERAL)
        check_at_least(self, period=1, low=0.0, high=0.0)
        check_parts(self, "start", "low_until", "high_from")
        if self.cond == self.uncond:
            raise PolicyError(
                f"cond and uncond of cfg_cache are both {self.cond!r}; name two branches"
            )

    def rule(self, num_steps: int) -> GuidanceRule:
        """When the branch is left out, for a number of steps.

        Raises:
            PolicyError: The preset is for another number.
        """
        if self.preset is not None:
            return find_preset(self.preset, num_steps, self.name).guidance
        return make_guidance_rule(
            num_steps,
            start=self.start,
            period=self.period,
            low=self.low,
            high=self.high,
            low_until=self.low_until,
            high_from=self.high_from,
        )

    def plan_branches(self, num_steps: int) -> GuidancePlan:
        """What becomes of the branch at each of so many steps.

        Raises:
            PolicyError: The preset is for another number.
        """
        base = 0
        if self.preset is not None:
            base = find_preset(self.preset, num_steps, self.name).base
        return plan_guidance(self.rule(num_steps), num_steps, base, self.bands)

    def _run_of(self, session: SessionInfo) -> GuidanceRun:
        return session.state_of(self, lambda: GuidanceRun(self.plan_branches(session.num_steps)))

    # ------------------------------------------------------------------ the hooks
    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        self._run_of(session)
        refuse_divided(session)
        if self.bands:
            require_grid(session)
        if session.branches and not session.row_branches:
            self._require_branches(session.branches)

    @hookimpl
    def pre_step(self, step: Step) -> None:
        info = step.session
        # a driver that knows its branches was checked before; others show them in the first step
        if not info.branches and not info.row_branches and step.index == info.first + 1:
            self._require_branches(tuple(self._run_of(info).called))

    def _require_branches(self, names: tuple[str, ...]) -> None:
        missing = [name for name in (self.cond, self.uncond) if name not in names]
        if missing:
            raise CapabilityError(
                f"cfg_cache makes branch {self.uncond!r} from {self.cond!r}, but the branches of "
                f"this run are {', '.join(names)}, and no rows of its batch are known to be "
                "theirs; give a guidance scale above 1 and a negative prompt that differs from "
                "the prompt, name branches with cond=... and uncond=..., or remove it"
            )

    @hookimpl(wrapper=True)
    def decide(self, step: Step, call: Call) -> Generator[None, Decision, Decision]:
        decision = yield
        plan = self._run_of(step.session).plan
        rows = find_rows(step.session, call, self.cond, self.uncond)
        if rows is not None and any(plan.skips):
            require_division(call)
        if isinstance(decision, Reuse) or not plan.skips[step.index]:
            return decision
        memory = call.state_of(self, GuidanceMemory)
        if memory.delta is None or memory.delta.index < plan.newest[step.index]:
            return decision  # a full step is due
        if rows is None:
            answer = call.answers.get(self.cond)
            if call.branch != self.uncond or answer is None or not answer.computed:
                return decision
        memory.skipped = step.index
        memory.delta.grow(*plan.weights[step.index])
        reason = f"cfg_cache, difference of step {memory.delta.index}"
        if rows is None:
            return Reuse(reason, "branch")
        return Reuse(reason, decision.scope, mask=rows.mask)

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        output = yield
        run = self._run_of(step.session)
        run.called.setdefault(call.branch)
        rows = find_rows(step.session, call, self.cond, self.uncond)
        if rows is not None:
            return self._answer_rows(step, call, rows, output)
        if call.branch != self.uncond:
            return output
        if self.cond not in call.answers:
            raise PolicyError(
                f"cfg_cache needs branch {self.cond!r} to be called before {self.uncond!r} in "
                f"each step, here the order is {', '.join(run.called)}; remove it"
            )
        answer, memory = call.answers[self.cond], call.state_of(self, GuidanceMemory)
        if call.reused and memory.skipped == step.index:
            assert memory.delta is not None
            return memory.delta.add_to(answer.output)
        if call.ran and answer.computed:
            memory.delta = self._compare(step, answer.output, output)
        return output

    def _answer_rows(self, step: Step, call: Call, rows: BranchRows, output: Tensor) -> Tensor:
        """The output of a batched call, or of some of its rows: the conditional ones come first."""
        memory = call.state_of(self, GuidanceMemory)
        if call.rows is None:
            if call.ran:
                cond, uncond = (output[own.start : own.stop] for own in (rows.cond, rows.uncond))
                memory.delta = self._compare(step, cond, uncond)
            return output
        if memory.skipped != step.index:  # another policy decided for some samples
            return output
        if call.ran:
            memory.cond = output
            return output
        assert memory.delta is not None
        assert memory.cond is not None
        places = torch.tensor(rows.locate(call.rows), device=output.device)
        return memory.delta.add_to(memory.cond.index_select(0, places), places)

    def _compare(self, step: Step, cond: Tensor, uncond: Tensor) -> BranchDelta | None:
        """The difference of a step that computed both; None before it is of use."""
        plan = self._run_of(step.session).plan
        if step.index < plan.kept_from:
            return None
        return BranchDelta.of(step.index, cond, uncond, plan.splits[step.index])
