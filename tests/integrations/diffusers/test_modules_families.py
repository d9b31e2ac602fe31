"""Every family: keeping changes no bit, reuse is finite, and nothing is left behind."""

from __future__ import annotations

import pytest
import torch

from erta_framework.errors import CapabilityError
from erta_integrations.diffusers import attach
from module_plans import every, gated, plan
from tiny_pipelines import FAMILIES

STEPS = 3
KINDS = (("attention", "cross", "mlp"), ("block",))
WITHOUT_BLOCKS = {"unconditional", "stable-cascade-prior", "stable-cascade-decoder"}
"""Their attention is mixed with other layers in the lists."""

LESS = {"ltx2-three-branches"}
"""One of its branches leaves out cross-modal attention by itself, and so does less."""


def networks(pipe):
    parts = getattr(pipe, "components", {})
    return [part for part in parts.values() if isinstance(part, torch.nn.Module)]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_modules_of_every_family(name):
    family = FAMILIES[name]
    plain = family.run(family.build(), STEPS)
    for kinds in KINDS[: 1 if name in WITHOUT_BLOCKS else 2]:
        for n in (1, 2):
            pipe = family.build()
            before = [gated(network) for network in networks(pipe)]
            with attach(pipe, [plan(every(n), *kinds)]) as run:
                latents = family.run(pipe, STEPS)
            assert [gated(network) for network in networks(pipe)] == before
            trace = run.traces[0]
            assert not trace.unassigned
            if n == 1:
                assert torch.equal(latents, plain)
                assert trace.work == trace.network_samples or name in LESS
            else:
                assert latents.isfinite().all()


@pytest.mark.parametrize("name", sorted(WITHOUT_BLOCKS))
def test_families_without_blocks_say_so(name):
    with pytest.raises(CapabilityError, match="nothing matches; there are"):
        attach(FAMILIES[name].build(), [plan(every(2), "block")])
