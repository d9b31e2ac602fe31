"""SpeCa and L2C through unmodified pipelines: exact where nothing is reused, and what they cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from erta_integrations.diffusers import attach
from erta_policies.l2c import L2C, L2CProfiler
from erta_policies.speca import SpeCa
from tiny_pipelines import FAMILIES

STEPS = 8
NAMES = ("wan-unipc", "flux", "sd3", "sd")


def sample(name: str, *policies: Any) -> tuple[Tensor, Any]:
    family = FAMILIES[name]
    pipe = family.build()
    if not policies:
        return family.run(pipe, STEPS), None
    with attach(pipe, policies) as attached:
        latents = family.run(pipe, STEPS)
    return latents, attached


@pytest.mark.parametrize("name", NAMES)
def test_full_steps_change_no_bit(name: str) -> None:
    expected, _ = sample(name)
    found, attached = sample(name, SpeCa(first=STEPS))
    assert torch.equal(found, expected)
    assert attached.traces[0].spared_samples == 0


@pytest.mark.parametrize("name", NAMES)
def test_forecasts_are_cheaper_and_verifying_costs_the_last_block(name: str) -> None:
    _, never = sample(name, SpeCa(threshold=1e9, decay=1.0, least=5, first=2, order=1))
    found, verified = sample(name, SpeCa(threshold=1e9, decay=1.0, least=1, first=2, order=1))
    assert bool(found.isfinite().all())
    works = [one.traces[0].work for one in (never, verified)]
    assert works[0] < works[1] < works[1] + verified.traces[0].spared_samples
    _, strict = sample(name, SpeCa(threshold=0.0, floor=0.0, first=2, order=1))
    assert works[1] < strict.traces[0].work


@pytest.mark.parametrize("name", NAMES)
def test_l2c_is_calibrated_and_keeps_its_budget(name: str) -> None:
    expected, _ = sample(name)
    calibrated, attached = sample(name, L2CProfiler())
    assert torch.equal(calibrated, expected)
    (profile,) = attached.emitted
    same, nothing = sample(name, L2C(profile=profile, budget={"work": STEPS}))
    assert torch.equal(same, expected)
    assert nothing.traces[0].spared_samples == 0
    found, rested = sample(name, L2C(profile=profile, budget={"work": STEPS - 1.0}))
    assert bool(found.isfinite().all())
    trace = rested.traces[0]
    full = trace.work + trace.spared_samples
    assert trace.work <= full * (STEPS - 1) / STEPS + 1e-6
    assert trace.work >= full * (STEPS - 1.3) / STEPS
