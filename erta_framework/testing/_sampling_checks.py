"""Checks of what a policy does in a request: what runs, what comes out, what it reports."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Generator
from dataclasses import field

import torch
from torch import Tensor

from erta_framework import Traits
from erta_framework.plugins import Policy, hookimpl
from erta_framework.sampling import Request, Result
from erta_framework.sampling.guidance import CFG, NoGuidance
from erta_framework.session import Call, Compute, Decision, Step
from erta_framework.testing._bench import (
    ToySetup,
    choose_setup,
    drive_by_hand,
    make_engine,
    run_plain_loop,
    run_to_end,
)
from erta_framework.testing._compare import fail, find_difference, run_or_refuse
from erta_framework.testing._toys import Toy


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

    A policy that declares `corrects_computed` must still leave every step computed.
    """
    setup = choose_setup(policy)
    request, toy = setup.request(seed=1), setup.toy()
    engine = make_engine(policy, before=[ForcedCompute()])
    result = setup.run(engine, request, toy)
    ran, trials = toy.calls, result.trace.trial_calls
    if ran - trials != count_expected_calls(setup, request):
        fail(
            policy,
            f"with every decision forced to Compute the network ran {ran - trials} times, not "
            f"{count_expected_calls(setup, request)}, and {trials} times as a trial",
            "answer from the cache only when call.reused",
        )
    if engine.traits.corrects_computed:
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


def check_batch_size_may_change(policy: Policy) -> None:
    """One engine serves requests of other batch sizes as fresh engines do."""
    setup = choose_setup(policy)
    pristine, engine = copy.deepcopy(policy), make_engine(policy)
    for batch in (2, 1, 3):
        request = setup.request(seed=7, batch=batch)
        fresh = setup.run(make_engine(copy.deepcopy(pristine)), request)
        problem = find_difference(setup.run(engine, request), fresh)
        if problem is not None:
            fail(
                policy,
                f"after requests of other batch sizes one of batch {batch} changed: {problem}",
                "keep shapes out of the policy: use call.state_of or session.state_of",
            )


def check_dtype_and_device_kept(policy: Policy) -> None:
    """float32, float64 and bfloat16 latents keep their dtype and device, or are refused by name.

    float32 is what the kit calibrates with and must not be refused.
    """
    setup = choose_setup(policy)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        request, toy = setup.request(seed=8, dtype=dtype), setup.toy()
        if dtype is torch.float32:
            result: Result | None = setup.run(make_engine(policy), request, toy)
        else:
            result = run_or_refuse(setup, make_engine(policy), request, toy)
        if result is not None and (result.sample.dtype, result.sample.device) != (
            request.latents.dtype,
            request.latents.device,
        ):
            fail(
                policy,
                f"latents of {dtype} on {request.latents.device} became {result.sample.dtype} on "
                f"{result.sample.device}",
                "cast what you return to call.x.dtype",
            )


def check_output_is_finite(policy: Policy) -> None:
    """Samples and every reused output are finite."""
    setup = choose_setup(policy)
    result = setup.run(make_engine(policy), setup.request(seed=9))
    result.trace.raise_if_nonfinite()
    replaced = [call for call in result.trace.calls() if "not finite" in call.reason]
    if replaced:
        fail(
            policy,
            f"the reused output of step {replaced[0].index}, branch {replaced[0].branch!r}, was "
            "not finite and had to be computed",
            "guard divisions and extrapolations",
        )
    if not bool(result.sample.isfinite().all()):
        fail(policy, "the samples are not finite", "guard divisions and extrapolations")


def check_interval_reaches_the_end(policy: Policy) -> None:
    """Intervals follow each other without a gap, never turn back, and end where sampling ends."""
    setup = choose_setup(policy)
    request = setup.request(seed=10)
    position = request.schedule.sigmas[0]
    for step in setup.run(make_engine(policy), request).trace.steps:
        if step.start != position or step.end > step.start:
            fail(
                policy,
                f"step {step.index} goes from {step.start} to {step.end}, but the trajectory "
                f"stands at {position}",
                "let adjust_interval move end and end_time only, towards the end",
            )
        position = step.end
    if position != request.schedule.sigmas[-1]:
        fail(
            policy,
            f"sampling ended at {position}, not at {request.schedule.sigmas[-1]}",
            "let the last step take all that remains",
        )


def check_trace_is_valid_json(policy: Policy) -> None:
    """The trace can be written as strict JSON and agrees with itself."""
    setup = choose_setup(policy)
    trace = setup.run(make_engine(policy), setup.request(seed=11)).trace
    try:
        read = json.loads(trace.to_json(), parse_constant=_refuse_constant)
    except (TypeError, ValueError) as error:
        fail(policy, f"the trace is no JSON: {error}", "give a plain text as reason")
    calls = [call for step in read["steps"] for call in step["calls"]]
    wordless = [call["index"] for call in calls if not isinstance(call["reason"], str)]
    if wordless or any(not call["reason"] for call in calls):
        fail(policy, "a decision has no reason", "give a few words: Reuse('period')")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


SAMPLING_CHECKS = (
    check_null_run_is_bit_identical,
    check_first_step_computes,
    check_late_start_computes,
    check_loop_equals_hand_driven_session,
    check_skipped_steps_were_skipped,
    check_other_guidance_is_served_or_refused,
    check_batch_size_may_change,
    check_dtype_and_device_kept,
    check_output_is_finite,
    check_interval_reaches_the_end,
    check_trace_is_valid_json,
)
