"""Makes the profile that ships: `python -m erta_bench.shapes_wan.calibrate`.

It is the profile of the demo's setting, 50 steps of `WanPipeline` with its flow-matching Euler
scheduler, over all calibration prompts. A few plans of ERTACache and of every edge cost, each with
its predictor, are then replayed on these prompts, so that a budget may be given in dB. Seconds are
left out, since they are those of one machine. Make the profile again after retraining.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from erta_bench.setting import PROFILE as HERE
from erta_bench.setting import Spec, build_policy
from erta_framework import Profile, ProgressBar
from erta_framework.budgets import ReplaySetting, measure
from erta_framework.config import build_policies
from erta_integrations.shapes_wan.model import PROFILE, ShapesWan, load_model

SEED = 1000
BATCH = 8
"""Samples of a replayed request."""
PARTS = (0.5, 0.34, 0.24, 0.16)
"""Network calls of the replayed plans, as parts of the steps."""
PLANNED: Mapping[str, tuple[Spec, ...]] = {
    "reuse": ("residual_reuse",),
    "grouping": ("residual_reuse",),
    "integrated": ("residual_reuse",),
    "corrected": ("residual_reuse", {"error_linearizer": {"profile": HERE}}),
    "forecast": ("forecaster",),
}
"""The predictor of each edge cost."""


def calibrate_shapes_wan(arguments: list[str] | None = None) -> Path:
    """Calibrate through the pipeline, replay plans, and write the profile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--prompts", type=int, default=24, help="how many calibration prompts")
    parser.add_argument("--output", type=Path, default=PROFILE)
    options = parser.parse_args(arguments)
    model = load_model()
    prompts = model.demo_prompts()[0][: options.prompts]
    (profiler,) = build_policies(["residual_profiler"])
    sampler = model.pipeline_sampler(callbacks=[ProgressBar()], num_steps=options.steps)
    profile = sampler.calibrate(model, prompts, seed=SEED, profiler=profiler)
    return add_plans(profile, model, prompts).save(options.output)


def add_plans(profile: Profile, model: ShapesWan, prompts: Sequence[str]) -> Profile:
    """The profile with plans that were replayed on these prompts."""
    steps = int(profile.fingerprint["num_steps"])
    setting = ReplaySetting(
        sampler=lambda policies: model.pipeline_sampler(
            policies, num_steps=steps, batch_size=BATCH
        ),
        model=model,
        prompts=prompts,
        seed=SEED,
        batch=BATCH,
    )
    calls = sorted({max(2, round(part * steps)) for part in PARTS})
    recipes: list[tuple[Spec, ...]] = [({"ertacache": {"profile": HERE, "calls": steps}},)]
    for cost, predictor in PLANNED.items():
        options = {"profile": HERE, "budget": {"calls": steps}, "cost": cost}
        recipes.append(({"planned_schedule": options}, *predictor))
    for recipe in recipes:
        policies = [build_policy(spec, profile) for spec in recipe]
        profile = measure(setting, policies, steps, calls).untimed().added_to(profile)
    return profile


if __name__ == "__main__":
    print(calibrate_shapes_wan())
