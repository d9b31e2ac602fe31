"""What an attached engine costs: microseconds a step beside the same pipeline without one.

The network is replaced by one that costs nothing before anything is attached, so that both sides
share what the pipeline and its scheduler cost by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.progress import track

from erta_bench.core import Bench, Row, Value
from erta_bench.overhead._overhead import build_toy_policies
from erta_bench.setting import time_call
from erta_framework import Policy
from erta_framework.config import build_policies
from erta_framework.errors import InputError
from erta_integrations.diffusers import attach
from tiny_pipelines import FAMILIES, Family

GUIDANCE = {1: 1.0, 2: 5.0}
"""The guidance scale at which a pipeline calls its network once or twice a step."""
PIPELINES = ("wan-euler", "lumina2")
"""One pipeline that names its branches, and one whose branches are found by their conditioning."""
COLUMNS = {
    "pipeline": "pipeline",
    "policies": "policies",
    "branches": "branches",
    "us_per_step": "us a step",
    "us_per_step_least": "least",
    "us_per_step_processor": "processor",
    "us_per_step_plain": "plain",
}


@dataclass(frozen=True, slots=True)
class FreePipeline:
    """A tiny pipeline whose network costs nothing, and how to run it."""

    family: Family
    pipe: Any
    steps: int
    branches: int

    def run(self) -> Any:
        """One request."""
        return self.family.run(self.pipe, self.steps, guidance_scale=GUIDANCE[self.branches])


def make_free_pipeline(name: str, steps: int, branches: int) -> FreePipeline:
    """A tiny pipeline whose network returns the same tensor at every call.

    Raises:
        InputError: The pipeline is not one of `PIPELINES`, or does not call its network as often.
    """
    if name not in PIPELINES or branches not in GUIDANCE:
        raise InputError(
            f"pipeline {name!r} with {branches} branches; give one of {', '.join(PIPELINES)} and "
            f"{' or '.join(map(str, GUIDANCE))} branches"
        )
    family = FAMILIES[name]
    made = FreePipeline(family, family.build(), steps, branches)
    network = made.pipe.transformer
    original: Callable[..., Any] = network.forward
    outputs: list[Any] = []

    def remember(*args: Any, **kwargs: Any) -> Any:
        outputs.append(original(*args, **kwargs))
        return outputs[-1]

    vars(network)["forward"] = remember
    made.run()
    if len(outputs) != steps * branches:
        raise InputError(
            f"{name} called its network {len(outputs)} times in {steps} steps, not {branches} "
            "times a step"
        )
    fixed = outputs[0]
    vars(network)["forward"] = lambda *args, **kwargs: fixed
    return made


def build_policies_for(count: int, made: FreePipeline) -> Sequence[Policy]:
    """The first `count` of: uniform skipping, residual reuse, timestep adjustment, correction."""
    chosen = list(build_toy_policies(min(count, 3), made.steps, made.branches))
    if count > 3:
        with attach(made.pipe, "residual_profiler") as run:
            made.run()
        chosen += build_policies([{"error_linearizer": {"profile": run.profile()}}])
    return chosen


def measure_attached(
    *,
    pipelines: Sequence[str] = PIPELINES,
    policies: Sequence[int] = (0, 1, 4),
    branches: Sequence[int] = (1, 2),
    steps: int = 50,
    repeats: int = 40,
    progress: bool = False,
    command: str = "attach-overhead",
) -> Bench:
    """Measure what an attached engine adds to a request of an unmodified pipeline.

    Plain and attached requests run in turn, so that both see the same disturbances. Opening and
    closing the request is included; attaching is not.

    Args:
        pipelines: Some of `PIPELINES`.
        policies: Numbers of policies, up to 4.
        branches: Numbers of network calls a step, 1 or 2.
        steps: Steps of a request.
        repeats: Requests of each; the median counts.
        progress: Show a progress bar.
        command: Named in the result.

    Returns:
        Rows with `pipeline`, `policies`, `branches` and `us_per_step`, the median of attached
        minus plain (`us_per_step_least` is the difference of their fastest requests,
        `us_per_step_processor` the median in processor time).
    """
    settings = [(name, c, b) for name in pipelines for b in branches for c in policies]
    rows = [
        time_attachment(name, count, number, steps, repeats)
        for name, count, number in track(settings, "measuring", disable=not progress)
    ]
    facts: dict[str, Value] = {"steps": steps, "repeats": repeats}
    return Bench(command, rows, COLUMNS, facts, section="pipeline")


def time_attachment(name: str, count: int, branches: int, steps: int, repeats: int) -> Row:
    """Time a plain and an attached pipeline in turn."""
    plain, driven = (
        make_free_pipeline(name, steps, branches),
        make_free_pipeline(name, steps, branches),
    )
    chosen = build_policies_for(count, driven)
    bare, full = [], []
    with attach(driven.pipe, chosen) as run:
        plain.run()
        driven.run()
        for _ in range(repeats):
            bare.append(time_call(plain.run)[1])
            full.append(time_call(driven.run)[1])
    trace = run.traces[0]
    scale = 1e6 / steps
    added = [(f.wall - b.wall, f.processor - b.processor) for f, b in zip(full, bare, strict=True)]
    return {
        "name": "attach-overhead",
        "pipeline": type(plain.pipe).__name__,
        "branch_names": ", ".join(dict.fromkeys(call.branch for call in trace.calls())),
        "policies": count,
        "branches": branches,
        "steps": steps,
        "calls": trace.network_calls // branches,
        "us_per_step": median(wall for wall, _ in added) * scale,
        "us_per_step_least": (min(full).wall - min(bare).wall) * scale,
        "us_per_step_processor": median(processor for _, processor in added) * scale,
        "us_per_step_plain": median(took.wall for took in bare) * scale,
        "repeats": repeats,
    }
