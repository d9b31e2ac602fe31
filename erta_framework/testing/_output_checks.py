"""Checks of what comes out of a request: samples, intervals and the trace as JSON."""

from __future__ import annotations

import copy
import json

import torch

from erta_framework.plugins import Policy
from erta_framework.sampling import Result
from erta_framework.testing._compare import fail, find_difference, run_or_refuse
from erta_framework.testing._setup import choose_setup, make_engine


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


OUTPUT_CHECKS = (
    check_batch_size_may_change,
    check_dtype_and_device_kept,
    check_output_is_finite,
    check_interval_reaches_the_end,
    check_trace_is_valid_json,
)
