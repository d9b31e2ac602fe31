"""Every check can fail: policies with one fault each, caught by the check that is named."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import field, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from erta_framework import Policy, Profile, Reuse, Seam, Traits, hookimpl
from erta_framework.budgets import Planner, StepSchedule
from erta_framework.errors import ErtaError
from erta_framework.modules import KEEP, SKIP, Ask, ReuseKept, Select
from erta_framework.testing import CHECKS, AlternateSteps, CheckError, check_policy
from erta_policies.seacache import SeaCacheRule

BROKEN: list[tuple[str, Policy, str]] = []
"""Check that must fail, the policy, and what the message must say."""


def broken(check: str, message: str, **options: Any) -> Callable[[type[Policy]], type[Policy]]:
    def register(cls: type[Policy]) -> type[Policy]:
        BROKEN.append((check, cls(**options), message))
        return cls

    return register


def odd(step) -> Reuse | None:
    return Reuse("odd") if step.index % 2 else None


# ------------------------------------------------------------------------------- contract
@broken("check_hook_arguments_exist", "takes latents")
class TakesUnknownArgument(Policy):
    @hookimpl
    def decide(self, step, latents):
        return None


@broken("check_hook_arguments_exist", "its traits are 2")
class TraitsAreANumber(AlternateSteps):
    traits = 2


@broken("check_hook_arguments_exist", "unknown hook 'pre_stp'")
class MisspellsAHook(Policy):
    @hookimpl
    def pre_stp(self, step):
        pass


class ForwardsByHand(Policy):
    """Passes on every trait of its rule that somebody thought of, as wrappers once did."""

    policy: Policy

    @property
    def traits(self) -> Traits:
        own = self.policy.traits
        return Traits(
            requires=own.requires,
            seams=own.seams,
            static=own.static,
            decides=own.decides,
            memory=own.memory,
        )

    @hookimpl
    def decide(self, step, call):
        return self.policy.decide(step, call)


@broken("check_wrappers_forward_traits", "do not say reads_latents", policy=SeaCacheRule())
class ForgetsThatItsRuleReadsLatents(ForwardsByHand):
    pass


@broken("check_frozen", "'something_new' could be set")
class Thawed(AlternateSteps):
    pass


Thawed.__setattr__ = object.__setattr__  # dataclasses refuse it in the class body


@broken("check_copyable_and_picklable", "cannot be pickled")
@broken("check_config_round_trip", "no configuration file can hold it")
class HoldsAFunction(Policy):
    rule: Callable[[int], bool] = lambda index: index % 2 == 1

    @hookimpl
    def decide(self, step):
        return Reuse("rule") if self.rule(step.index) else None


@broken("check_config_round_trip", "came back as")
class ChangesItsOptions(Policy):
    period: int = 2

    def __post_init__(self):
        object.__setattr__(self, "period", self.period + 1)

    @hookimpl
    def decide(self, step):
        return Reuse("period") if step.index % self.period else None


@broken("check_copyable_and_picklable", "copy.deepcopy gave other settings", period=3)
class ForgetsWhenCopied(Policy):
    period: int = 2

    def __reduce__(self):
        return (type(self), ())

    @hookimpl
    def decide(self, step):
        return Reuse("period") if step.index % self.period else None


@broken("check_config_round_trip", "made again from its options it samples differently")
class HidesASetting(Policy):
    def __post_init__(self):
        object.__setattr__(self, "period", 2)

    @hookimpl
    def decide(self, step):
        return Reuse("period") if step.index % self.period else None


object.__setattr__(BROKEN[-1][1], "period", 3)


@broken("check_documented", "no docstring")
class Undocumented(Policy):
    @hookimpl
    def decide(self, step):
        return odd(step)


@broken("check_documented", "names no source")
class NamesNoSource(Undocumented):
    """Reuses odd steps."""


@broken("check_documented", "does not mention period")
class ForgetsAField(Undocumented):
    """Reuses odd steps. Source: ours."""

    period: int = 2


# ------------------------------------------------------------------------------- sampling
@broken("check_null_run_is_bit_identical", "nothing was reused, yet the samples differ")
class MovesComputedIntervals(Policy):
    @hookimpl
    def adjust_interval(self, step):
        interval = step.interval
        if step.index == step.num_steps - 1:
            return None
        return replace(interval, end=(interval.start + interval.end) / 2)


@broken("check_null_run_is_bit_identical", "replaced a computed output")
class CorrectsEverything(Policy):
    @hookimpl(wrapper=True)
    def forward(self):
        output = yield
        return output * 1.01


@broken("check_first_step_computes", "without the network")
class AnswersTheFirstStep(Policy):
    @hookimpl
    def forward(self, step, call):
        return call.x if step.index == 0 else None


@broken("check_late_start_computes", "raised KeyError")
class ExpectsStepZero(Policy):
    @hookimpl
    def pre_step(self, step):
        state = step.session.state_of(self, dict)
        if step.index == 0:
            state["start"] = 0
        _ = state["start"]


@broken("check_loop_equals_hand_driven_session", "two drivers")
class CountsSessions(Policy):
    sessions: ClassVar[int] = 0

    @hookimpl
    def on_session_start(self):
        type(self).sessions += 1

    @hookimpl
    def decide(self, step):
        return odd(step) if type(self).sessions % 2 else None


@broken("check_skipped_steps_were_skipped", "was to be reused .odd., but the network ran")
class PretendsToSkip(Policy):
    @hookimpl
    def decide(self, step):
        return odd(step)

    @hookimpl
    def forward(self, call):
        return call.compute()


@broken("check_other_guidance_is_served_or_refused", "raised IndexError")
class AssumesTwoBranches(Policy):
    @hookimpl
    def decide(self, step):
        return odd(step) if step.branches[1] else None


@broken("check_batch_size_may_change", "one of batch 1 changed: the decisions differ")
class RemembersTheBatch(Policy):
    memory: dict[str, int] = field(default_factory=dict)

    @hookimpl
    def decide(self, step, call):
        batch = call.x.shape[0]
        return odd(step) if self.memory.setdefault("batch", batch) == batch else None


@broken("check_dtype_and_device_kept", "torch.float32 .*expected .*torch.float64")
class AnswersInFloat32(Policy):
    @hookimpl
    def decide(self, step):
        return odd(step)

    @hookimpl
    def forward(self, call):
        return (call.x + call.history[0].residual).float() if call.reused else None


@broken("check_output_is_finite", "was not finite and had to be computed")
class DividesByZero(Policy):
    @hookimpl
    def decide(self, step):
        return odd(step)

    @hookimpl
    def forward(self, call):
        return call.x / torch.zeros_like(call.x) if call.reused else None


@broken("check_output_is_finite", "reused output of branch 'cond' at step 1 is not finite")
class DividesByZeroUnseen(DividesByZero):
    traits = Traits(static=True)


@broken("check_interval_reaches_the_end", "the last step must take all that remains")
class StopsShort(Policy):
    @hookimpl
    def adjust_interval(self, step):
        return replace(step.interval, end=(step.interval.start + step.interval.end) / 2)


@broken("check_trace_is_valid_json", "a decision has no reason")
class GivesNoReason(Policy):
    @hookimpl
    def decide(self, step):
        return Reuse("") if step.index % 2 else None


@broken("check_trace_is_valid_json", "the trace is no JSON")
class GivesATensorAsReason(Policy):
    @hookimpl
    def decide(self, step, call):
        return Reuse(call.x.mean()) if step.index % 2 else None  # type: ignore[arg-type]


@broken("check_static_reads_nothing_back", "two requests decided differently")
class ClaimsToBeStatic(Policy):
    traits = Traits(static=True)

    @hookimpl
    def decide(self, step, call):
        return Reuse("sign") if float(call.x[0, 0].flatten()[0]) > 0 else None


@broken("check_static_reads_nothing_back", r"reads values back while sampling: \['item'")
class ReadsBack(Policy):
    traits = Traits(static=True)

    @hookimpl
    def decide(self, step, call):
        return odd(step) if call.x.abs().max().item() >= 0 else None


# ------------------------------------------------------------------------------ isolation
@broken("check_requests_do_not_leak", "on one engine changed: the decisions differ")
@broken("check_no_state_on_policy", r"CountsForwards.count \(on the class\)")
class CountsForwards(Policy):
    count: ClassVar[int] = 0

    @hookimpl
    def decide(self):
        type(self).count += 1
        return Reuse("even") if type(self).count % 2 == 0 else None


@broken("check_no_state_on_policy", "writes_on_itself.last")
class WritesOnItself(Policy):
    @hookimpl
    def post_step(self, sample):
        object.__setattr__(self, "last", sample)


@broken("check_no_state_on_policy", "fills_a_list.seen")
class FillsAList(Policy):
    seen: list[int] = field(default_factory=list)

    @hookimpl
    def pre_step(self, step):
        self.seen.append(step.index)


@broken("check_interleaved_sessions_agree", "of two interleaved ones changed")
class KeepsResidualsOnTheClass(Policy):
    residuals: ClassVar[dict[str, torch.Tensor]] = {}

    @hookimpl
    def decide(self, step):
        return odd(step)

    @hookimpl
    def forward(self, call):
        if call.reused:
            return call.x + self.residuals[call.branch]
        output = call.compute()
        self.residuals[call.branch] = output - call.x
        return output


@broken("check_branches_are_isolated", "output of branch 'cond' at step 1 changed")
class OneResidualForAllBranches(Policy):
    @hookimpl
    def decide(self, step):
        return odd(step)

    @hookimpl
    def forward(self, step, call):
        state = step.session.state_of(self, dict)
        if call.reused:
            return call.x + state["residual"]
        output = call.compute()
        state["residual"] = output - call.x
        return output


@broken("check_branches_are_isolated", "decisions for branch 'cond' depend on the condition")
class DecidesFromTheOtherBranch(Policy):
    @hookimpl
    def decide(self, step):
        return Reuse("other") if step.session.state_of(self, dict).get("sign", False) else None

    @hookimpl(wrapper=True)
    def forward(self, step, call):
        output = yield
        if call.branch == "uncond":
            state = step.session.state_of(self, dict)
            state["sign"] = bool(output.mean() * 1e4 % 2 > 1)
        return output


@broken("check_samples_are_independent", "of a batch took")
class DecidesFromTheWholeBatch(Policy):
    traits = Traits(decides="sample")

    @hookimpl
    def decide(self, call):
        size = call.x.flatten(1).norm(dim=1)
        return Reuse("below the mean", mask=size <= size.mean())


@broken("check_inputs_are_not_mutated", "wrote into")
class WritesIntoLatents(Policy):
    @hookimpl(wrapper=True)
    def forward(self, call):
        output = yield
        call.x.add_(0.0)
        return output


@broken("check_inputs_are_not_mutated", "wrote into the latents")
class WritesIntoSamples(Policy):
    @hookimpl
    def post_step(self, step, sample):
        kept = step.session.state_of(self, dict)
        kept.setdefault("first", sample).mul_(0.5)  # at step 0 this is the driver's own tensor


@broken("check_inputs_are_not_mutated", "wrote into")
class WritesIntoOutputs(Policy):
    @hookimpl(wrapper=True)
    def forward(self):
        output = yield
        return output.mul_(1.0)


@broken("check_no_global_rng", "moved the global random state of torch")
class DrawsFromTorch(Policy):
    @hookimpl
    def pre_step(self):
        torch.rand(1)


@broken("check_no_global_rng", "moved the global random state of numpy")
class DrawsFromNumpy(Policy):
    @hookimpl
    def pre_step(self):
        np.random.rand(1)


@broken("check_no_global_rng", "moved the global random state of random")
class DrawsFromPython(Policy):
    @hookimpl
    def pre_step(self):
        random.random()


@broken("check_no_global_rng", "results depend on the global random state")
class DrawsAndPutsBack(Policy):
    @hookimpl
    def decide(self, step):
        return odd(step)

    @hookimpl(wrapper=True)
    def forward(self, call):
        output = yield
        with torch.random.fork_rng(devices=[]):
            noise = torch.randn_like(output)
        return output + 1e-3 * noise if call.reused else output


@broken("check_plan_is_what_runs", r"planned the steps \(0, 1\), but branch 'cond' computed")
class PlansOtherSteps(Policy, Planner):
    def plan(self, num_steps):
        return StepSchedule.of({0, 1}, num_steps)

    @hookimpl
    def decide(self, step):
        return odd(step)


@broken("check_plan_is_what_runs", r"has plan\(\) but no schedules\(\) and no with_calls\(\)")
class PlansHalf(Policy):
    def plan(self, num_steps):
        return StepSchedule.of(range(0, num_steps, 2), num_steps)


@broken("check_plan_is_what_runs", "planned .0, 2. of type tuple; return")
class PlansATuple(Policy, Planner):
    def plan(self, num_steps):
        return (0, 2)


@broken("check_exception_leaves_no_trace", "the caller saw PolicyError")
class SwallowsErrors(Policy):
    @hookimpl(wrapper=True)
    def forward(self, call):
        try:
            return (yield)
        except Exception:
            return torch.zeros_like(call.x)


@broken("check_exception_leaves_no_trace", "outlived a failed request")
class EmitsHalfAProfile(Policy):
    @hookimpl
    def on_session_end(self, error):
        return Profile("half", {}, {"sum": torch.zeros(1)}, samples=1)


@broken("check_exception_leaves_no_trace", "after a failed request the next one changed")
class RemembersErrors(Policy):
    errors: list[str] = field(default_factory=list)

    @hookimpl
    def decide(self, step):
        return None if self.errors else odd(step)

    @hookimpl
    def on_session_end(self, error):
        if error is not None:
            self.errors.append(str(error))


class Parts(Policy):
    """Keeps its modules at even ages and reuses them at odd ones."""

    traits = Traits(seams=frozenset({Seam.MODULE}))

    @property
    def selects(self):
        return (Select(kind=("attention", "mlp")),)

    def action(self, call, age):
        return KEEP if age % 2 == 0 else ReuseKept()

    @hookimpl
    def assign(self, call):
        ages = {place: call.age(place) for place in call.sites}
        return {p: KEEP if age is None else self.action(call, age) for p, age in ages.items()}


@broken("check_reuse_at_equal_input_is_equal", "step 1 differs by up to")
class LosesATenth(Parts):
    def action(self, call, age):
        return ReuseKept((0.9,))


@broken("check_reuse_at_equal_input_is_equal", "step 1 differs by up to nan")
class LetsAPhantomOut(Parts):
    def action(self, call, age):
        return SKIP


@broken("check_nothing_is_left_on_modules", "left something on blocks.0.attn")
class MarksModules(Parts):
    def action(self, call, age):
        return Ask(self.mark)

    @staticmethod
    def mark(visit):
        visit._owned.output.module.seen = True
        return visit.run()


@broken("check_places_have_one_owner", "took two copies of it")
class SelectsSomethingElseEachTime(Parts):
    made: ClassVar[list[Policy]] = []

    @property
    def selects(self):
        if not any(self is other for other in self.made):
            self.made.append(self)
        index = next(k for k, other in enumerate(self.made) if other is self)
        return (Select(kind=("mlp",), depth=str(index % 3)),)


@broken("check_places_are_assigned", "owns blocks.0.mlp, blocks.1.attn")
class ForgetsPlaces(Parts):
    @hookimpl
    def assign(self, call):
        return {call.sites[0]: KEEP}


@broken("check_modules_beside_a_step_rule", "beside a step rule the samples are not finite")
class ExpectsEveryStep(Parts):
    def action(self, call, age):
        return KEEP if age == 1 else ReuseKept((float("inf"),))


@broken("check_rows_of_modules", "of a batch differs by up to")
class MixesSamples(Parts):
    def action(self, call, age):
        return ReuseKept((float(call.x.mean()),))


BY_NAME = {check.__name__: check for check in CHECKS}


@pytest.mark.parametrize(
    ("name", "policy", "message"),
    BROKEN,
    ids=[f"{type(policy).__name__}-{name}" for name, policy, _ in BROKEN],
)
def test_fault_is_caught_by_its_check(name, policy, message):
    with pytest.raises(ErtaError, match=message) as caught:
        BY_NAME[name](policy)
    assert type(policy).__name__ in str(caught.value) or "request 'toy-" in str(caught.value)


def test_every_check_is_shown_to_fail():
    assert {name for name, _, _ in BROKEN} == set(BY_NAME)


def test_a_policy_that_raises_is_reported_by_name():
    class Raises(Policy):
        @hookimpl
        def decide(self):
            raise ZeroDivisionError("no schedule")

    with pytest.raises(CheckError, match=r"Raises\(\) raised ZeroDivisionError in hook 'decide'"):
        check_policy(Raises())
