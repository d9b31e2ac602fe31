"""Trials with a plan of places, through unmodified pipelines."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
import torch
from torch import Tensor

from erta_framework import Call, Policy, Seam, Step, Traits, hookimpl
from erta_framework.errors import CapabilityError
from erta_framework.modules import KEEP, Action, Parts, Place, ReuseKept, Select
from erta_framework.session import PLANNED, TRIAL
from erta_integrations.diffusers import attach
from tiny_pipelines import FAMILIES

STEPS = 4


class Tries(Policy):
    """Keeps attention at every step, and tries to reuse it; compares with a run that does."""

    found: list[Tensor] | None = None
    reuse_at: int | None = None
    selects = (Select(kind=("attention",)),)
    traits = Traits(seams=frozenset(Seam), requires=frozenset({TRIAL, PLANNED}))

    @hookimpl
    def assign(self, step: Step, call: Parts) -> dict[Place, Action]:
        return dict.fromkeys(call.sites, ReuseKept() if step.index == self.reuse_at else KEEP)

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        assert self.found is not None
        if step.index == 2 and self.reuse_at is None:
            self.found.append(
                call.trial(plan=lambda parts: dict.fromkeys(parts.sites, ReuseKept()))
            )
        output = yield
        if step.index == self.reuse_at:
            self.found.append(output)
        return output


@pytest.mark.parametrize("name", ["wan-euler", "flux", "sd", "cogvideox"])
def test_a_trial_is_what_a_run_with_its_plan_gives(name: str) -> None:
    family = FAMILIES[name]
    plain = family.run(family.build(), STEPS)
    tried: list[Tensor] = []
    ran: list[Tensor] = []
    pipe: Any = family.build()
    with attach(pipe, [Tries(found=tried)]) as attached:
        assert torch.equal(family.run(pipe, STEPS), plain)
    calls = attached.traces[0].network_calls
    assert attached.traces[0].trial_calls == len(tried) == calls // STEPS
    pipe = family.build()
    with attach(pipe, [Tries(found=ran, reuse_at=2)]):
        family.run(pipe, STEPS)
    assert len(ran) == len(tried)
    assert all(map(torch.equal, tried, ran))


def test_the_trunk_seam_offers_no_trials() -> None:
    with pytest.raises(CapabilityError, match="trial"):
        attach(FAMILIES["wan-euler"].build(), [Tries(found=[])], seam=Seam.TRUNK)
