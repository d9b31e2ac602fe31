"""Checks of what runs in a request: which steps, how often, and whether the trace agrees."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from dataclasses import field

import torch
from torch import Tensor

from erta_framework.plugins import Policy, Traits, hookimpl
from erta_framework.sampling import Request, Result
from erta_framework.sampling.guidance import CFG, NoGuidance
from erta_framework.session import Call, Compute, Decision, Step
from erta_framework.testing._compare import fail, find_difference, run_or_refuse
from erta_framework.testing._drivers import drive_by_hand, run_plain_loop, run_to_end
from erta_framework.testing._setup import ToySetup, choose_setup, make_engine
from erta_framework.testing._toy import Toy


class ForcedCompute(Policy):
    """Overrules every decision with Compute; listed first it is the outermost wrapper."""

    traits = Traits(static=True)

    @hookimpl(wrapper=True)
    def decide(self) -> Generator[None, Decision, Decision]:
        yield
        return Compute("forced")


class DecisionSpy(Policy):
    """Notes what was decided for each call and whether the network ran after all."""

    traits = Traits(static=True)
    seen: list[tuple[int, str, Decision, bool]] = field(default_factory=list)

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        output = yield
        self.seen.append((step.index, call.branch, call.decision, call.ran))
        return output


def check_null_run_is_bit_identical(policy: Policy) -> None:
    """With every decision forced to Compute the samples equal those of a bare loop, bit for bit.

    Every place inside the network is then kept, whatever its owner assigns. A policy that declares
    `corrects_computed`, or adjusts the guided prediction, must still leave every step computed.
    """
    setup = choose_setup(policy)
    request, toy = setup.request(seed=1), setup.toy()
    engine = make_engine(policy, before=[ForcedCompute()])
    if engine.selecting:
        session = setup.session(engine, request)
        result = run_to_end(drive_by_hand(setup, session, request, toy, keep_all=True))
    else:
        result = setup.run(engine, request, toy)
    ran, trials = toy.calls, result.trace.trial_calls
    if ran - trials != count_expected_calls(setup, request):
        fail(
            policy,
            f"with every decision forced to Compute the network ran {ran - trials} times, not "
            f"{count_expected_calls(setup, request)}, and {trials} times as a trial",
            "answer from the cache only when call.reused",
        )
    if engine.traits.corrects_computed or "adjust_prediction" in engine.active:
        return
    plain = run_plain_loop(setup, request, setup.toy())
    if not torch.equal(result.sample, plain):
        gap = float((result.sample - plain).abs().max())
        fail(
            policy,
            f"nothing was reused, yet the samples differ from a bare loop by up to {gap:.3g}",
            "change outputs and intervals only when call.reused or an answer was not computed",
        )


def check_first_step_computes(policy: Policy) -> None:
    """Every branch is computed in the first step, where there is nothing to reuse."""
    setup = choose_setup(policy)
    first = setup.run(make_engine(policy), setup.request(seed=2)).trace.steps[0]
    for call in first.calls:
        if not call.computed:
            fail(
                policy,
                f"branch {call.branch!r} was reused in step 0 ({call.reason})",
                "answer only when call.reused",
            )


def check_late_start_computes(policy: Policy) -> None:
    """A request that starts later in the schedule (img2img) computes its own first step.

    Refusing such a request by name is right where the policy cannot serve it.
    """
    setup = choose_setup(policy)
    request, toy = setup.request(seed=3, first=3), setup.toy()
    result = run_or_refuse(setup, make_engine(policy), request, toy)
    if result is not None:
        check_counts(policy, setup, request, result, toy)


def check_loop_equals_hand_driven_session(policy: Policy) -> None:
    """`SamplingLoop` and a session driven by hand give the same samples and decisions."""
    setup = choose_setup(policy)
    request, engine = setup.request(seed=4), make_engine(policy)
    by_loop = setup.run(engine, request)
    driven = run_to_end(drive_by_hand(setup, setup.session(engine, request), request, setup.toy()))
    problem = find_difference(by_loop, driven)
    if problem is not None:
        fail(
            policy,
            f"two drivers of the same request disagree: {problem}",
            "use only what step and call say, never the driver or the number of hook calls",
        )


def check_skipped_steps_were_skipped(policy: Policy) -> None:
    """The network ran exactly as often as the trace says, and never where reuse was decided."""
    setup = choose_setup(policy)
    request, toy, spy = setup.request(seed=5), setup.toy(), DecisionSpy()
    result = setup.run(make_engine(policy, before=[spy]), request, toy)
    check_counts(policy, setup, request, result, toy)
    for index, branch, decision, ran in spy.seen:
        if ran and not isinstance(decision, Compute):
            fail(
                policy,
                f"step {index} of branch {branch!r} was to be reused ({decision.reason}), but the "
                "network ran",
                "do not call call.compute() on a reused call; decide Compute instead",
            )


def check_counts(
    policy: Policy, setup: ToySetup, request: Request, result: Result, toy: Toy
) -> None:
    """Calls counted by the toy agree with the trace, and sources are earlier computed steps."""
    trace = result.trace
    calls = list(trace.calls())
    computed = sum(call.computed for call in calls)
    if not toy.calls - trace.trial_calls == trace.network_calls == computed:
        fail(
            policy,
            f"the network ran {toy.calls} times, the trace says {trace.network_calls} network "
            f"calls and {computed} computed calls",
            "run the network through call.compute() only",
        )
    if computed + trace.reused_calls != count_expected_calls(setup, request):
        fail(
            policy,
            f"{computed} computed and {trace.reused_calls} reused calls do not add up to "
            f"{count_expected_calls(setup, request)}",
            "answer every branch of every step once",
        )
    ran: set[tuple[str, int | None]] = set()
    for call in calls:
        if call.computed:
            ran.add((call.branch, call.index))
        elif (call.source_branch or call.branch, call.source) not in ran:
            fail(
                policy,
                f"step {call.index} of branch {call.branch!r} reuses step {call.source}"
                + (f" of {call.source_branch!r}" if call.source_branch else "")
                + ", which "
                "was not computed before it",
                "reuse only what call.history holds",
            )


def count_expected_calls(setup: ToySetup, request: Request) -> int:
    """Branch calls of a request: one a branch and step."""
    steps = request.schedule.num_steps
    return sum(
        len(setup.guidance.branches(request.cond, request.uncond, index, steps))
        for index in range(request.first, steps)
    )


def check_other_guidance_is_served_or_refused(policy: Policy) -> None:
    """One branch, batched branches and a guidance interval all work, or are refused by name."""
    setup = choose_setup(policy)
    for guidance in (NoGuidance(), CFG(scale=2.0, batched=True), CFG(start=0.2, stop=0.7)):
        other = dataclasses.replace(setup, guidance=guidance)
        request, toy = other.request(seed=6), other.toy()
        result = run_or_refuse(other, make_engine(policy), request, toy)
        if result is not None:
            check_counts(policy, other, request, result, toy)


SAMPLING_CHECKS = (
    check_null_run_is_bit_identical,
    check_first_step_computes,
    check_late_start_computes,
    check_loop_equals_hand_driven_session,
    check_skipped_steps_were_skipped,
    check_other_guidance_is_served_or_refused,
)
