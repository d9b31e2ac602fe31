"""Makes the profile that ships: `python -m erta_integrations.shapes_wan.calibrate`.

It is the profile of the demo's setting, 50 steps of `WanPipeline` with its flow-matching Euler
scheduler, over all calibration prompts. Make it again after retraining.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from erta_framework import ProgressBar
from erta_framework.config import build_policies
from erta_integrations.shapes_wan.model import PROFILE, load_model

SEED = 1000


def main(arguments: list[str] | None = None) -> Path:
    """Calibrate through the pipeline and write the profile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--prompts", type=int, default=24, help="how many calibration prompts")
    parser.add_argument("--output", type=Path, default=PROFILE)
    options = parser.parse_args(arguments)
    model = load_model()
    calibration, _ = model.demo_prompts()
    (profiler,) = build_policies(["residual_profiler"])
    sampler = model.pipeline_sampler(callbacks=[ProgressBar()], num_steps=options.steps)
    profile = sampler.calibrate(model, calibration[: options.prompts], seed=SEED, profiler=profiler)
    return profile.save(options.output)


if __name__ == "__main__":
    print(main())
