"""AdaCorrection through unmodified pipelines: with full weight the network, without it the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from erta_framework.modules import Select
from erta_integrations.diffusers import attach
from erta_policies.adacorrection import AdaCorrection
from erta_policies.at import At
from erta_policies.deepcache import DeepCache
from erta_policies.pab import PAB
from erta_policies.taylorseer import FORA, RefreshInterval, TaylorSeer
from tiny_pipelines import FAMILIES

STEPS = 6
ALWAYS = 1e-30
"""A reference below every change, so that all weights are 1."""


def every_block() -> At:
    when = RefreshInterval(interval=3, first=1)
    return At(sites=Select(kind=("block",)), when=when, of="residual")


CASES = {
    "wan-fora": ("wan-unipc", lambda: FORA(interval=3, level="modules")),
    "wan-blocks": ("wan-unipc", every_block),
    "wan-pab": ("wan-unipc", lambda: PAB(spatial=3, cross=3, window=(-1.0, 2000.0))),
    "flux-fora": ("flux", lambda: FORA(interval=3, level="modules")),
    "flux-taylorseer": ("flux", lambda: TaylorSeer(interval=3, first=1, level="modules")),
    "sd3-fora": ("sd3", lambda: FORA(interval=3, level="modules")),
    "sd-deepcache": ("sd", DeepCache),
    "sd-fora": ("sd", lambda: FORA(interval=3, level="modules")),
    "sdxl-deepcache": ("sdxl", lambda: DeepCache(branch=1)),
    "animatediff-deepcache": ("animatediff", DeepCache),
}


def sample(name: str, *policies: Any) -> tuple[Tensor, Any]:
    family = FAMILIES[name]
    pipe = family.build()
    if not policies:
        return family.run(pipe, STEPS), None
    with attach(pipe, policies) as attached:
        latents = family.run(pipe, STEPS)
    return latents, attached.traces[0]


@pytest.mark.parametrize("case", CASES)
def test_with_full_weight_no_bit_changes_and_all_work_is_done(case: str) -> None:
    name, make = CASES[case]
    expected, _ = sample(name)
    found, trace = sample(name, AdaCorrection(policy=make(), reference=ALWAYS))
    assert torch.equal(found, expected)
    assert trace.spared_samples == 0


@pytest.mark.parametrize("case", CASES)
def test_without_weight_it_is_the_policy_inside(case: str) -> None:
    name, make = CASES[case]
    expected, alone = sample(name, make())
    found, trace = sample(name, AdaCorrection(policy=make(), gamma=0.0))
    assert torch.equal(found, expected)
    assert trace.work == alone.work
    assert trace.spared_samples > 0
    assert alone.module_bytes < trace.module_bytes <= trace.state_bytes


@pytest.mark.parametrize("case", CASES)
def test_between_the_two_the_work_is_that_of_what_ran(case: str) -> None:
    name, make = CASES[case]
    _, alone = sample(name, make())
    found, trace = sample(name, AdaCorrection(policy=make(), low=0.0, high=1.0, gamma=0.5))
    assert bool(found.isfinite().all())
    assert alone.work <= trace.work <= alone.work + alone.spared_samples
    _, bounded = sample(name, AdaCorrection(policy=make(), gamma=0.5, low=0.3))
    assert bounded.work <= trace.work
