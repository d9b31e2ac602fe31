"""Checks that nothing leaks between requests, sessions, branches, or out of a failed request."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Generator

import torch
from torch import Tensor

from erta_framework.plugins import Engine, Policy
from erta_framework.sampling import Branch, DenoiserCall, Request, Result, adjust_guided
from erta_framework.session import Site, Trace
from erta_framework.testing._compare import STATE, fail, find_difference, list_decisions
from erta_framework.testing._drivers import Verb, drive_by_hand, run_to_end
from erta_framework.testing._setup import ToySetup, choose_setup, make_engine, make_fresh_engine
from erta_framework.testing._toy import Toy


class NetworkFailure(Exception):
    """What the failing toy raises."""


class FailingNetwork:
    """A toy that raises at its n-th call."""

    def __init__(self, toy: Toy, at: int, error: Exception) -> None:
        self.toy, self.at, self.error = toy, at, error

    def __call__(self, x: Tensor, timestep: Tensor, embeds: Tensor) -> Tensor:
        """The toy's prediction, until the n-th call."""
        output = self.toy(x, timestep, embeds)
        if self.toy.calls == self.at:
            raise self.error
        return output


def check_requests_do_not_leak(policy: Policy) -> None:
    """Requests on one engine, one of them abandoned mid-way, equal requests on fresh engines."""
    setup, pristine = choose_setup(policy), copy.deepcopy(policy)
    one, other = setup.request(seed=21), setup.request(seed=22)
    expected = {
        id(request): setup.run(make_fresh_engine(pristine), request) for request in (other, one)
    }
    engine = make_engine(policy)
    for order, request in enumerate((one, other, one, other, one)):
        problem = find_difference(setup.run(engine, request), expected[id(request)])
        if problem is not None:
            fail(policy, f"request {order + 1} on one engine changed: {problem}", STATE)
        # an odd number of steps and forwards is left behind, so that counters end up out of step
        driver = drive_by_hand(setup, setup.session(engine, other), other, setup.toy())
        for _ in range(4 * (2 * order + 1) + 2):
            next(driver)
        driver.close()


def check_interleaved_sessions_agree(policy: Policy) -> None:
    """Two sessions of one engine, driven in turns, agree with the same requests run alone."""
    setup = choose_setup(policy)
    requests = [setup.request(seed=23), setup.request(seed=24)]
    expected = [setup.run(make_fresh_engine(policy), request) for request in requests]
    engine = make_engine(policy)
    drivers = [drive_by_hand(setup, setup.session(engine, r), r, setup.toy()) for r in requests]
    for _ in range(7):  # the first is a step and a half ahead
        next(drivers[0])
    for _ in range(4 * (setup.num_steps - 2)):
        for driver in drivers:
            next(driver)
    for number, (driver, alone) in enumerate(zip(drivers, expected, strict=True)):
        problem = find_difference(run_to_end(driver), alone)
        if problem is not None:
            fail(policy, f"session {number + 1} of two interleaved ones changed: {problem}", STATE)


def check_branches_are_isolated(policy: Policy) -> None:
    """On given latents, the output of one branch does not depend on the condition of another.

    A policy whose traits say `reads_peers` or `sees_every_branch` looks at the others by design.
    """
    traits = make_engine(policy).traits
    if traits.reads_peers or traits.sees_every_branch:
        return
    setup = choose_setup(policy)
    request, other = setup.request(seed=25), setup.request(seed=26, negative="another")
    base, trace = _run_branches(setup, make_fresh_engine(policy), request)
    swaps = {"cond": dataclasses.replace(request, uncond=other.uncond)}
    if not traits.corrects_computed:
        swaps["uncond"] = dataclasses.replace(request, cond=other.cond)
    for branch, swapped in swaps.items():
        outputs, swapped_trace = _run_branches(setup, make_fresh_engine(policy), swapped)
        if list_decisions(trace) != list_decisions(swapped_trace):
            if branch == "cond":
                fail(
                    policy,
                    "decisions for branch 'cond' depend on the condition of 'uncond'",
                    "decide from the branch that is asked; decisions are shared by the step",
                )
            continue  # the first branch decides for all
        for index, (a, b) in enumerate(zip(base[branch], outputs[branch], strict=True)):
            if not torch.equal(a, b):
                fail(
                    policy,
                    f"the output of branch {branch!r} at step {index} changed with the condition "
                    "of the other branch",
                    "keep state in call.state_of, which is split by branch",
                )


def check_samples_are_independent(policy: Policy) -> None:
    """A policy that decides per sample gives each sample of a batch what it gets alone."""
    if make_engine(policy).traits.decides != "sample":
        return
    setup = choose_setup(policy)
    batch = setup.request(seed=27, batch=4)
    together = setup.run(make_fresh_engine(policy), batch)
    for sample in range(4):
        alone = setup.run(make_fresh_engine(policy), _select_sample(batch, sample))
        calls = together.trace.calls_for(sample), alone.trace.calls_for(0)
        if calls[0] != calls[1] or not torch.equal(together.sample[sample], alone.sample[0]):
            fail(
                policy,
                f"sample {sample} of a batch took {calls[0]} network calls and alone {calls[1]}, "
                "or its latents differ",
                "reduce over all dimensions but the first, and keep one state a sample",
            )


def _select_sample(request: Request, sample: int) -> Request:
    assert request.uncond is not None
    part = slice(sample, sample + 1)
    return dataclasses.replace(
        request,
        latents=request.latents[part],
        cond=request.cond[part],
        uncond=request.uncond[part],
    )


@torch.no_grad()
def _run_branches(
    setup: ToySetup, engine: Engine, request: Request
) -> tuple[dict[str, list[Tensor]], Trace]:
    """Outputs of each branch along given latents, which do not depend on any output."""
    toy, schedule = setup.toy(), request.schedule
    assert request.uncond is not None
    conditions = {"cond": request.cond, "uncond": request.uncond}
    outputs: dict[str, list[Tensor]] = {name: [] for name in conditions}
    settled = schedule.interval(0)
    with setup.session(engine, request) as session:
        for index in range(schedule.num_steps):
            if index > 0:
                settled = schedule.interval(index, settled.end, settled.end_time)
            x = setup.solver.noised(0.3 * request.latents, request.latents, settled.start)
            session.begin(settled, list(conditions))
            for name, condition in conditions.items():
                call = DenoiserCall(
                    toy, x, settled.time, Branch(name, condition), undivided="one by one elsewhere"
                )
                answered = session.forward(Site(branch=name), x, call)
                outputs[name].append(answered.clone())
            settled = session.settle()
            if session.adjusts:
                adjust_guided(session, setup.solver, x, answered, settled)
            session.end(x)
    return outputs, session.trace


def check_exception_leaves_no_trace(policy: Policy) -> None:
    """When the network raises, its own error comes through and nothing is left behind."""
    setup, pristine = choose_setup(policy), copy.deepcopy(policy)
    request, toy = setup.request(seed=30), setup.toy()
    expected = setup.run(make_fresh_engine(pristine), request, toy)
    engine = make_engine(policy)
    for at in sorted({1, 2, toy.calls // 2, toy.calls}):
        error = NetworkFailure(f"network call {at}")
        session = setup.session(engine, request)
        caught = _catch_error(
            drive_by_hand(setup, session, request, FailingNetwork(setup.toy(), at, error))
        )
        if caught is not error:
            fail(
                policy,
                f"the network raised {error!r}, the caller saw {caught!r}",
                "do not catch what call.compute() or yield raises",
            )
        if session.info.states._states or session._history.kept or session.emitted:
            fail(
                policy,
                "state, history or an emitted profile outlived a failed request",
                "return None from on_session_end when error is given",
            )
        if _catch_error(drive_by_hand(setup, session, request, setup.toy())) is None:
            fail(policy, "a failed session could be used again", "leave sessions to the driver")
        problem = find_difference(setup.run(engine, request), expected)
        if problem is not None:
            fail(policy, f"after a failed request the next one changed: {problem}", STATE)


def _catch_error(driver: Generator[Verb, None, Result]) -> Exception | None:
    try:
        run_to_end(driver)
    except Exception as error:
        return error
    return None


ISOLATION_CHECKS = (
    check_requests_do_not_leak,
    check_interleaved_sessions_agree,
    check_branches_are_isolated,
    check_samples_are_independent,
    check_exception_leaves_no_trace,
)
