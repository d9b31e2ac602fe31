"""The guided prediction of unmodified pipelines: how latents are mixed, and its adjustment."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from erta_framework import Engine
from erta_framework.errors import CapabilityError
from erta_integrations.diffusers import attach
from erta_integrations.diffusers.pipeline._levels import BY_CLASS, find_levels
from erta_integrations.diffusers.pipeline._schedulers import read_schedule
from erta_policies.noise_scale import NoiseScale
from tiny_pipelines import FAMILIES

STEPS = 6
FLOWS = ("FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler", "LTXEulerAncestralRFScheduler")


def build(name: str, **options: Any) -> Any:
    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(STEPS)
    return scheduler


@pytest.mark.parametrize("name", sorted(set(BY_CLASS) - set(FLOWS)))
def test_the_levels_are_those_with_which_the_scheduler_adds_noise(name: str) -> None:
    if hasattr(getattr(diffusers, name), "_backends"):
        pytest.skip(f"{name} needs {getattr(diffusers, name)._backends}")
    scheduler = build(name)
    levels, schedule = find_levels(scheduler), read_schedule(scheduler)
    assert levels is not None
    clean, noise = torch.randn(2, 1, 4, 5, 5, dtype=torch.float64)
    for index in range(STEPS - 1):
        alpha, level = levels(schedule.sigmas[index])
        at = scheduler.timesteps[index : index + 1]
        if name == "FlowMatchEulerDiscreteScheduler":
            noised = scheduler.scale_noise(clean, at, noise)
        else:
            noised = scheduler.add_noise(clean, noise, at)
        torch.testing.assert_close(alpha * clean + level * noise, noised, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler"])
def test_a_multistep_solver_of_a_flow_mixes_as_a_flow(name: str) -> None:
    scheduler = build(name, prediction_type="flow_prediction", use_flow_sigmas=True)
    levels = find_levels(scheduler)
    assert levels is not None
    assert levels(0.25) == (0.75, 0.25)


@pytest.mark.parametrize(
    "name", ["EDMEulerScheduler", "SCMScheduler", "CMStochasticIterativeScheduler"]
)
def test_what_is_not_known_is_not_offered(name: str) -> None:
    assert find_levels(getattr(diffusers, name)()) is None


class ScaledSteps:
    """A scheduler's `step` whose predicted noise is scaled by hand."""

    def __init__(self, scheduler: Any, change: Any) -> None:
        self.step, self.change, self.calls = scheduler.step, change, 0
        scheduler.step = self

    def __call__(self, output: Any, time: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.step(self.change(output, sample, self.calls - 1), time, sample, *args, **kwargs)


def test_predicted_noise_of_a_pipeline_is_scaled_once_a_step() -> None:
    family, factors = FAMILIES["sd"], (1.0, 0.99, 0.98, 0.97, 0.96, 0.95)
    by_hand = family.build()
    steps = ScaledSteps(by_hand.scheduler, lambda e, x, k: e * factors[k] if k else e)
    expected = family.run(by_hand, STEPS)
    assert steps.calls == STEPS
    pipe = family.build()
    with attach(pipe, [NoiseScale(scale=factors)]) as attached:
        found = family.run(pipe, STEPS)
    assert torch.equal(found, expected)
    assert attached.traces[0].network_calls == STEPS  # both branches are one batch


def test_the_velocity_of_a_pipeline_is_scaled_as_its_noise() -> None:
    family, sigmas = FAMILIES["wan-euler"], []

    def scale(velocity: Any, x: Any, step: int) -> Any:
        sigma = float(by_hand.scheduler.sigmas[step])
        sigmas.append(sigma)
        if 1 - sigma < 1e-3:
            return velocity
        noise = 0.98 * (x + (1 - sigma) * velocity)
        return noise - (x - sigma * noise) / (1 - sigma)

    by_hand = family.build()
    ScaledSteps(by_hand.scheduler, scale)
    expected = family.run(by_hand, STEPS)
    pipe = family.build()
    with attach(pipe, [NoiseScale(scale=0.98)]):
        found = family.run(pipe, STEPS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, family.run(family.build(), STEPS), atol=1e-3)
    assert len(sigmas) == STEPS


@pytest.mark.parametrize("name", ["sd", "wan-euler", "flux", "cogvideox"])
def test_a_factor_of_1_changes_no_bit_of_a_pipeline(name: str) -> None:
    family = FAMILIES[name]
    expected = family.run(family.build(), STEPS)
    pipe = family.build()
    with attach(pipe, [NoiseScale(scale=1.0)]):
        assert torch.equal(family.run(pipe, STEPS), expected)


def test_a_scheduler_of_unknown_latents_is_refused_at_attach() -> None:
    pipe = FAMILIES["sd"].build()
    pipe.scheduler = diffusers.EDMEulerScheduler()
    with pytest.raises(CapabilityError, match="requires guided, which EDMEulerScheduler"):
        attach(pipe, Engine([NoiseScale()]))
