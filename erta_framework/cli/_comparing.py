"""Runs a comparison: profiles first, then one prompt to count calls, then everything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from erta_framework.budgets import StepSchedule, forecast
from erta_framework.cli._candidates import Candidate
from erta_framework.cli._grounds import Exact, Ground
from erta_framework.cli._progress import OverallProgress
from erta_framework.errors import PolicyError
from erta_framework.plugins import Profiler
from erta_framework.report import Clock, Comparison, Method, count_work
from erta_framework.report import compare as measure
from erta_framework.sampling import Samples
from erta_framework.text import escape_line

STEPS = 50
"""Steps for which schedules are tried where a pipeline has not said how many it has."""
ROUNDS, RECORDED = 2, 1
"""Parts in which the methods take turns, and prompts of the untimed pass before."""


def make_methods(
    ground: Ground, candidates: Sequence[Candidate], folder: Path
) -> tuple[Method, list[Method]]:
    """The full run, and a method for each candidate; profiles that they lack are calibrated.

    Raises:
        ConfigError: An option of a policy is unknown or missing.
        InputError: A profile is needed, and there are no prompts to make it from.
    """
    made: dict[str, Path] = {}

    def make_profile(name: str, profiler: Profiler) -> Path:
        key = repr(profiler)
        if key not in made:
            say(f"calibrating {profiler.name} for {name}")
            path = folder / "profiles" / f"{profiler.name}-{len(made)}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            made[key] = ground.calibrate(name, profiler).save(path)
        return made[key]

    steps = ground.steps
    full = Method(
        name="Full run",
        detail="The network runs in every step; the others are measured against its samples.",
        steps=steps,
    )
    methods = []
    for position, each in enumerate(candidates):
        policies = each.build(make_profile, steps or STEPS)
        own = steps if each.config.steps == ground.config.steps else each.config.steps
        methods.append(
            Method(
                name=each.name,
                detail="; ".join(map(repr, policies)) or "No policy: every step is computed.",
                steps=own,
                policies=policies,
                solver=each.config.solver,
                subject=position == 0,
            )
        )
    return full, methods


def count_calls(
    ground: Ground, full: Method, methods: Sequence[Method], prompt: str
) -> tuple[Method, list[float]]:
    """The full run with its number of steps, and the calls of each branch that methods make.

    One prompt is sampled, since only running tells what a policy does that decides by values.
    """
    with OverallProgress(full.steps * (1 + len(methods)) or None, "trying one prompt") as bar:

        def try_one(method: Method) -> Samples:
            sampler = ground.make_sampler(method, method.policies, [bar], 1)
            return sampler.sample(ground.model, [prompt], seed=ground.config.seed)

        ran = try_one(full)
        whole = sum(map(count_work, ran.traces))
        steps = ran.traces[0].num_steps
        works = [sum(map(count_work, try_one(method).traces)) for method in methods]
    known = Method(name=full.name, detail=full.detail, steps=steps, solver=full.solver)
    return known, [steps * work / whole for work in works]


def list_plain(steps: int, calls: Sequence[float]) -> list[Method]:
    """As many plain steps as the methods make calls, nothing cached.

    Example:
        >>> [method.steps for method in list_plain(50, [17.2, 25.0, 50.0])]
        [25, 17]
    """
    numbers = sorted({round(number) for number in calls if 1 <= round(number) < steps})
    return [
        Method(
            name=f"{number} plain steps",
            detail=f"{number} steps of the same solver, nothing is cached: what the calls buy "
            "without a policy.",
            steps=number,
        )
        for number in reversed(numbers)
    ]


def compare_candidates(
    ground: Ground,
    candidates: Sequence[Candidate],
    prompts: Sequence[str],
    folder: Path,
    *,
    exact: bool,
    clock: Clock,
) -> tuple[Comparison, StepSchedule | None]:
    """Measure all, and forecast the schedule of the first where it plans ahead.

    Raises:
        ErtaError: A policy cannot be built, or does not serve this solver or pipeline.
    """
    full, methods = make_methods(ground, candidates, folder)
    full, calls = count_calls(ground, full, methods, prompts[0])
    methods = [full, *methods, *list_plain(full.steps, calls)]
    solution: Exact = (None, "")
    if exact:
        say("solving the prompts exactly; --no-exact leaves it out")
        solution = ground.solve(full, prompts, ground.config.seed)
    rounds = min(ROUNDS, len(prompts))
    size = -(-len(prompts) // rounds)
    parts = [min(size, len(prompts) - begin) for begin in range(0, len(prompts), size)]
    turns = sum(map(ground.count_requests, [RECORDED, *parts]))
    with OverallProgress(turns * sum(method.steps for method in methods), "sampling") as bar:
        comparison = measure(
            ground.model,
            methods,
            prompts,
            seed=ground.config.seed,
            rounds=rounds,
            recorded=RECORDED,
            callbacks=[bar],
            make_sampler=ground.make_sampler,
            exact=solution[0],
            exact_note=solution[1],
            clock=clock,
        )
    subject = comparison.methods[comparison.subject]
    try:
        return comparison, forecast(subject.policies, subject.steps)
    except PolicyError:  # it decides while sampling
        return comparison, None


def say(text: str) -> None:
    """A line about what runs now, on the standard error."""
    typer.echo(escape_line(text), err=True)
