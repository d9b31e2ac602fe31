"""What the engine itself costs: microseconds a step beside a hand-written loop.

The network costs nothing, so that only the loop is left to measure. The arithmetic of reuse and
correction belongs to the engine's side; the hand-written loop computes every step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from erta_bench.core.report import Bench, Row, Value
from erta_bench.core.syncs import SyncCounter
from erta_framework.calibration import Profile
from erta_framework.config import build_policies
from erta_framework.errors import InputError
from erta_framework.plugins import Engine, Policy, hookimpl
from erta_framework.sampling import (
    CFG,
    Denoiser,
    FlowEuler,
    Guidance,
    NoGuidance,
    Request,
    SamplingLoop,
)
from erta_framework.session import Call, Compute, Decision, Reuse

SHAPE = (1, 4, 8, 8)
COLUMNS = {
    "name": "measured",
    "policies": "policies",
    "branches": "branches",
    "us_per_step": "us a step",
    "us_per_step_least": "least",
    "us_per_step_engine": "engine",
    "us_per_step_bare": "bare",
    "syncs": "syncs",
}


class ReadsBack(Policy):
    """Decides by a value of the latents: a schedule made while sampling, as a control."""

    @hookimpl
    def decide(self, call: Call) -> Decision:
        change = (call.x - call.history[0].residual).abs().mean()
        return Reuse("change") if float(change) < 1.0 else Compute("change")


def guidance_of(branches: int) -> Guidance:
    """Guidance with this many branches.

    Raises:
        InputError: Neither 1 nor 2.
    """
    if branches not in (1, 2):
        raise InputError(f"branches is {branches}; the toy has 1 or 2")
    return CFG(scale=3.0) if branches == 2 else NoGuidance()


def toy_request(steps: int) -> Request:
    """Random latents and conditions on a schedule of `steps`."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(SHAPE, generator=generator)
    cond, uncond = torch.ones(1, 1), torch.zeros(1, 1)
    schedule = FlowEuler().schedule(steps)
    return Request(latents=latents, cond=cond, uncond=uncond, schedule=schedule)


def toy_network() -> Denoiser:
    """A network that costs nothing: the same prediction for every latent, time and condition."""
    velocity = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    return lambda x, timestep, condition: velocity


def toy_profile(steps: int, branches: int) -> Profile:
    """A residual profile of the toy network, calibrated on the spot."""
    engine = Engine(build_policies(["residual_profiler"]))
    loop = SamplingLoop(engine, FlowEuler(), guidance_of(branches))
    return Profile.merge(loop.run(toy_network(), toy_request(steps)).emitted)


def toy_policies(count: int, steps: int, branches: int) -> tuple[Policy, ...]:
    """The first `count` of: uniform skipping, residual reuse, timestep adjustment, correction."""
    specs: list[dict[str, dict[str, Any]]] = [
        {"skip_policy": {"evenly": max(2, steps // 2)}},
        {"residual_reuse": {}},
        {"timestep_adjuster": {"phi": [0.95] * steps}},
    ]
    if count > len(specs):
        specs.append({"error_linearizer": {"profile": toy_profile(steps, branches)}})
    return build_policies(specs[:count])


def bare_loop(network: Denoiser, request: Request, branches: int) -> Tensor:
    """The loop that one would write by hand: guidance and Euler steps, no engine."""
    x, schedule = request.latents, request.schedule
    assert request.uncond is not None
    with torch.no_grad():
        for index, told in enumerate(schedule.times[:-1]):
            start, end = schedule.sigmas[index], schedule.sigmas[index + 1]
            times = torch.full((x.shape[0],), told, dtype=torch.float32, device=x.device)
            velocity = network(x, times, request.cond)
            if branches == 2:
                times = torch.full((x.shape[0],), told, dtype=torch.float32, device=x.device)
                other = network(x, times, request.uncond)
                velocity = other + 3.0 * (velocity - other)
            x = x + (end - start) * velocity
    return x


def overhead(
    *,
    policies: Sequence[int] = (0, 1, 4),
    branches: Sequence[int] = (1, 2),
    steps: int = 50,
    repeats: int = 40,
    progress: bool = False,
    command: str = "overhead",
) -> Bench:
    """Measure the engine's own cost and count its device synchronisations.

    Bare loop and engine are measured in turn, so that both see the same disturbances.

    Args:
        policies: Numbers of policies, up to 4.
        branches: Numbers of guidance branches, 1 or 2.
        steps: Steps a run.
        repeats: Runs of each; the median counts.
        progress: Show a progress bar.
        command: Named in the result.

    Returns:
        Rows with `policies`, `branches` and `us_per_step`, the median of engine minus bare loop
        (`us_per_step_least` is the difference of their fastest runs); then `static_syncs`, the
        synchronisations of one run with a static schedule, and as a control the same count for a
        schedule that is decided by values.
    """
    settings = [(count, number) for number in branches for count in policies]
    rows = [
        timed(count, number, steps, repeats)
        for count, number in track(settings, "measuring", disable=not progress)
    ]
    static = count_syncs(toy_policies(4, steps, 2), steps)
    control = count_syncs((ReadsBack(),), steps)
    shared = {"branches": 2, "steps": steps}
    rows += [
        {
            "name": "static_syncs",
            "policies": 4,
            **shared,
            "static_syncs": static.total,
            "syncs": static.total,
            "operations": str(static),
        },
        {
            "name": "dynamic_syncs",
            "policies": 1,
            **shared,
            "syncs": control.total,
            "operations": str(control),
        },
    ]
    facts: dict[str, Value] = {"shape": "x".join(map(str, SHAPE)), "repeats": repeats}
    return Bench(command, rows, COLUMNS, facts, section="branches")


def timed(policies: int, branches: int, steps: int, repeats: int) -> Row:
    """Time bare loop and engine in turn."""
    network, request = toy_network(), toy_request(steps)
    engine = Engine(toy_policies(policies, steps, branches))
    loop = SamplingLoop(engine, FlowEuler(), guidance_of(branches))
    calls = loop.run(network, request).trace.network_calls // branches
    bare_loop(network, request, branches)
    bare, full = [], []
    for _ in range(repeats):
        bare.append(seconds(lambda: bare_loop(network, request, branches)))
        full.append(seconds(lambda: loop.run(network, request)))
    scale = 1e6 / steps
    return {
        "name": "overhead",
        "policies": policies,
        "branches": branches,
        "steps": steps,
        "calls": calls,
        "us_per_step": median(f - b for f, b in zip(full, bare, strict=True)) * scale,
        "us_per_step_least": (min(full) - min(bare)) * scale,
        "us_per_step_engine": median(full) * scale,
        "us_per_step_bare": median(bare) * scale,
        "repeats": repeats,
    }


def seconds(run: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def count_syncs(policies: Sequence[Policy], steps: int) -> SyncCounter:
    """Count the synchronisations of one run of the loop with two branches."""
    loop = SamplingLoop(Engine(policies), FlowEuler(), guidance_of(2))
    network, request = toy_network(), toy_request(steps)
    with SyncCounter() as counter:
        loop.run(network, request)
    return counter
