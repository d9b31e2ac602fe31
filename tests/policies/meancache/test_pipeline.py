"""MeanCache on unmodified tiny pipelines."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")

import erta_framework as erta
from erta_framework.errors import CapabilityError
from erta_policies.meancache import MeanCache, MeanCacheProfiler
from tiny_pipelines import FAMILIES, counted

STEPS, CALLS = 8, 5


@pytest.mark.parametrize("name", ["wan-euler", "qwen-image"])
def test_a_pipeline_is_calibrated_and_accelerated(name, tmp_path):
    family = FAMILIES[name]
    pipe = family.build()
    full = family.run(pipe, steps=STEPS)
    with erta.attach(pipe, MeanCacheProfiler()) as run:
        for seed in (1, 2):
            observed = family.run(pipe, steps=STEPS, seed=seed)
    path = str(run.profile().save(tmp_path / "mean.safetensors"))
    samples = {}
    for variant in "ABC":
        policy = MeanCache(profile=path, calls=CALLS, variant=variant)
        with erta.attach(pipe, policy) as attached, counted(pipe, family) as calls:
            samples[variant] = family.run(pipe, steps=STEPS)
        assert len(calls) == CALLS * family.calls
        assert attached.traces[0].computed_steps[-1] == STEPS - 1
        assert samples[variant].isfinite().all()
        assert not torch.equal(samples[variant], full)
    assert torch.equal(family.run(pipe, steps=STEPS, seed=2), observed)


def test_what_a_pipeline_cannot_do_is_refused_at_attach():
    policy = MeanCache(fresh=(0, 1, 2, 7), spans=(0, 0, 2))
    with pytest.raises(CapabilityError, match=r"AverageVelocity.*requires"):
        erta.attach(FAMILIES["wan-unipc"].build(), policy)
    pipe = FAMILIES["wan-euler"].build()
    for variant, spans in (("A", (0, 0, 2)), ("B", (0, 0, 2))):
        policy = MeanCache(fresh=(0, 1, 2, 7), spans=spans, variant=variant)
        with pytest.raises(CapabilityError, match="works at the latent seam, not at the trunk"):
            erta.attach(pipe, policy, seam="trunk")
    with erta.attach(pipe, MeanCache(fresh=(0, 1, 2, 7), variant="C"), seam="trunk") as run:
        FAMILIES["wan-euler"].run(pipe, steps=STEPS)
    assert run.traces[0].computed_steps == (0, 1, 2, 7)
