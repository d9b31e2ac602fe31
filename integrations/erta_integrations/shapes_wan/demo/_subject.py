"""The policies that `erta demo` shows: ERTACache, or those of `--policy`, with their profile."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from erta_framework.budgets import StepSchedule, forecast
from erta_framework.calibration import Profile, require_profiler
from erta_framework.cli import (
    PolicyOptions,
    describe_policies,
    find_calibrator,
    find_shipped_profile,
    make_blank_policy,
    needs_profile,
    read_policies,
)
from erta_framework.config import build_policies
from erta_framework.errors import InputError, PolicyError
from erta_framework.plugins import Policy
from erta_framework.report import count_work
from erta_framework.sampling import ProgressBar, TextModel, TextSampler
from erta_integrations.shapes_wan.demo._methods import ERTACACHE, make_sampler

OWN = "ertacache"
CALLS = 25
"""Network calls of each branch where neither a policy nor a budget is named."""
CALIBRATION_PROMPTS, CALIBRATION_SEED = 8, 1000


@dataclass(frozen=True, slots=True)
class Subject:
    """What the demo shows.

    Attributes:
        name: Its name in the report.
        policies: In call order.
        origin: Where its profile comes from; empty where it reads none.
    """

    name: str
    policies: tuple[Policy, ...]
    origin: str

    def plan(self, steps: int) -> StepSchedule | None:
        """Its schedule; None where it decides while it samples."""
        try:
            return forecast(self.policies, steps)
        except PolicyError:
            return None

    def count_calls(self, model: TextModel, prompt: str, seed: int, steps: int, device: str) -> int:
        """Work of each branch in network calls; one prompt is sampled where no plan says it."""
        plan = self.plan(steps)
        if plan is not None:
            return plan.calls
        sampler = make_sampler(model, self.policies, (), steps=steps, accelerator=device)
        (trace,) = sampler.sample(model, [prompt], seed=seed).traces
        return max(1, round(count_work(trace) / len(trace.steps[0].calls)))


def choose_subject(
    options: PolicyOptions,
    model: TextModel,
    calibration: Sequence[str],
    steps: int,
    output: Path,
    out: Console,
    recalibrate: bool,
    device: str,
) -> Subject:
    """The policies of the options, else ERTACache, with a profile where one needs it.

    Raises:
        InputError: `--calls` exceeds the steps, or no policy takes the profile or the budget.
        ConfigError: A policy cannot be read.
    """
    if options.calls is not None and options.calls > steps:
        raise InputError(f"--calls {options.calls} exceeds the {steps} steps of the full run")
    specs = [one for text in options.policy or () for one in read_policies(text)]
    if not specs:
        specs = [{OWN: {}}]
        if options.budget is None:
            options = replace(options, calls=min(CALLS, steps))
    origin = "" if options.profile is None else f"given, {options.profile}"
    specs = options.complete(specs)
    made = []
    for spec in specs:
        ((name, given),) = spec.items()
        asked = find_calibrator(make_blank_policy(name)) if needs_profile(spec, steps) else None
        if asked is not None:
            shipped = find_shipped_profile(model) if name == OWN and not recalibrate else None
            file, origin = choose_profile(
                model, calibration, steps, output, out, asked, shipped, device
            )
            given = {**given, "profile": str(file)}
        made.append({name: given})
    title = describe_policies(specs) if options.policy else ERTACACHE
    return Subject(title, build_policies(made), origin)


def choose_profile(
    model: TextModel,
    calibration: Sequence[str],
    steps: int,
    output: Path,
    out: Console,
    calibrator: Policy,
    shipped: Path | None,
    device: str,
) -> tuple[Path, str]:
    """The shipped profile if it is of so many steps, or a new one of a few prompts; says which."""
    if shipped is not None and (known := Profile.load(shipped)).fingerprint["num_steps"] == str(
        steps
    ):
        origin = f"shipped with the model, calibrated on {known.samples} prompts"
        hashed = hashlib.sha256("\n".join(calibration).encode()).hexdigest()[:16]
        if known.provenance.get("prompts") == hashed:
            origin += "; none of them is shown"
        out.print(f"using the profile {origin}", soft_wrap=True)
        return shipped, origin
    few = list(calibration[:CALIBRATION_PROMPTS])
    sampler: TextSampler = make_sampler(model, (), [ProgressBar()], steps=steps, accelerator=device)
    profile = sampler.calibrate(
        model, few, seed=CALIBRATION_SEED, profiler=require_profiler(calibrator)
    )
    path = profile.save(output / "profile.safetensors")
    origin = f"calibrated now on {len(few)} prompts; none of them is shown"
    out.print(f"{origin}: {path}", soft_wrap=True)
    return path, origin
