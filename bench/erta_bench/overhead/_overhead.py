"""What the engine itself costs: microseconds a step beside a hand-written loop.

The network costs nothing, so that only the loop is left to measure. The arithmetic of reuse and
correction belongs to the engine's side; the hand-written loop computes every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from erta_bench.core import Bench, Row, Value
from erta_bench.overhead._syncs import SyncCounter
from erta_bench.setting import time_call
from erta_framework.calibration import Profile
from erta_framework.config import build_policies
from erta_framework.errors import InputError
from erta_framework.plugins import Engine, Policy, hookimpl
from erta_framework.sampling import Denoiser, Request, SamplingLoop
from erta_framework.sampling.guidance import CFG, Guidance, NoGuidance
from erta_framework.sampling.solvers import FlowEuler
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


class DecidesByValue(Policy):
    """Decides by a value of the latents, so the host waits for it: the control of the count."""

    @hookimpl
    def decide(self, call: Call) -> Decision:
        change = (call.x - call.history[0].residual).abs().mean()
        return Reuse("change") if float(change) < 1.0 else Compute("change")


def make_guidance(branches: int) -> Guidance:
    """Guidance with this many branches.

    Raises:
        InputError: Neither 1 nor 2.
    """
    if branches not in (1, 2):
        raise InputError(f"branches is {branches}; the toy has 1 or 2")
    return CFG(scale=3.0) if branches == 2 else NoGuidance()


def make_toy_request(steps: int) -> Request:
    """Random latents and conditions on a schedule of `steps`."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(SHAPE, generator=generator)
    cond, uncond = torch.ones(1, 1), torch.zeros(1, 1)
    schedule = FlowEuler().schedule(steps)
    return Request(latents=latents, cond=cond, uncond=uncond, schedule=schedule)


def make_toy_network() -> Denoiser:
    """A network that costs nothing: it predicts the same whatever it is given."""
    velocity = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    return lambda x, timestep, condition: velocity


def calibrate_toy(steps: int, branches: int) -> Profile:
    """A residual profile of the toy network, calibrated on the spot."""
    engine = Engine(build_policies(["residual_profiler"]))
    loop = SamplingLoop(engine, FlowEuler(), make_guidance(branches))
    return Profile.merge(loop.run(make_toy_network(), make_toy_request(steps)).emitted)


def build_toy_policies(count: int, steps: int, branches: int) -> tuple[Policy, ...]:
    """The first `count` of: uniform skipping, residual reuse, timestep adjustment, correction."""
    specs: list[dict[str, dict[str, Any]]] = [
        {"skip_policy": {"evenly": max(2, steps // 2)}},
        {"residual_reuse": {}},
        {"timestep_adjuster": {"phi": [0.95] * steps}},
    ]
    if count > len(specs):
        specs.append({"error_linearizer": {"profile": calibrate_toy(steps, branches)}})
    return build_policies(specs[:count])


def run_bare_loop(network: Denoiser, request: Request, branches: int) -> Tensor:
    """Guidance and Euler steps as one would write them by hand, without an engine."""
    x, schedule = request.latents, request.schedule
    assert request.uncond is not None
    with torch.no_grad():
        for index, timestep in enumerate(schedule.times[:-1]):
            start, end = schedule.sigmas[index], schedule.sigmas[index + 1]
            times = torch.full((x.shape[0],), timestep, dtype=torch.float32, device=x.device)
            velocity = network(x, times, request.cond)
            if branches == 2:
                times = torch.full((x.shape[0],), timestep, dtype=torch.float32, device=x.device)
                other = network(x, times, request.uncond)
                velocity = other + 3.0 * (velocity - other)
            x = x + (end - start) * velocity
    return x


def measure_overhead(
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
        time_engine(count, number, steps, repeats)
        for count, number in track(settings, "measuring", disable=not progress)
    ]
    static = count_syncs(build_toy_policies(4, steps, 2), steps)
    control = count_syncs((DecidesByValue(),), steps)
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


def time_engine(policies: int, branches: int, steps: int, repeats: int) -> Row:
    """Time the bare loop and the engine in turn."""
    network, request = make_toy_network(), make_toy_request(steps)
    engine = Engine(build_toy_policies(policies, steps, branches))
    loop = SamplingLoop(engine, FlowEuler(), make_guidance(branches))
    calls = loop.run(network, request).trace.network_calls // branches
    run_bare_loop(network, request, branches)
    bare, full = [], []
    for _ in range(repeats):
        _, took = time_call(lambda: run_bare_loop(network, request, branches))
        bare.append(took.wall)
        _, took = time_call(lambda: loop.run(network, request))
        full.append(took.wall)
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


def count_syncs(policies: Sequence[Policy], steps: int) -> SyncCounter:
    """Count the synchronisations of one run of the loop with two branches."""
    loop = SamplingLoop(Engine(policies), FlowEuler(), make_guidance(2))
    network, request = make_toy_network(), make_toy_request(steps)
    with SyncCounter() as counter:
        loop.run(network, request)
    return counter
