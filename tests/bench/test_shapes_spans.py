"""Spans and blocks left out of the reference models, through unmodified pipelines."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from erta_bench.shapes_image import ShapesFlux, ShapesUNet
from erta_framework import attach
from erta_integrations.diffusers.bundled import pipeline, request, samples_of
from erta_integrations.shapes_wan import ShapesWan
from erta_policies.fastcache import FastCache, SurrogateProfiler
from erta_policies.h2cache import FirstBlockGate, H2Cache
from erta_policies.precisecache import BlockCache

STEPS = 5
MODELS = {"wan": ShapesWan, "flux": ShapesFlux, "unet": ShapesUNet}
NOTHING = {
    "gate": FirstBlockGate(threshold=0.0),
    "blocks": BlockCache(skip_ratio=0.4, length=0),
    "fastcache": FastCache(threshold=0.0),
    "sums": SurrogateProfiler(),
    "h2": H2Cache(tau1=0.0, tau2=0.0),
    "split": H2Cache(tau1=0.0, tau2=0.0, split=3),
}
CASES = [(model, name) for model in MODELS for name in ("gate", "blocks", "fastcache")]
CASES += [("wan", "sums"), ("flux", "sums"), ("flux", "h2"), ("flux", "split"), ("wan", "split")]


def build(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    return model, pipeline(model)


def sample(model, pipe, *policies):
    asked = request(model, ["a red circle left"], seeds=[3], num_steps=STEPS)
    with torch.no_grad(), attach(pipe, list(policies)) as run:
        found = samples_of(model, pipe(**asked))
    return found, run.traces[0]


def count_blocks(network):
    """How often each block of a network really runs, counted inside of it."""
    counts = Counter()
    for stack in ("blocks", "transformer_blocks", "single_transformer_blocks"):
        for place, block in enumerate(getattr(network, stack, ())):
            inner = next(m for m in block.modules() if m is not block and list(m.parameters(False)))
            inner.register_forward_pre_hook(lambda *_, key=(stack, place): counts.update([key]))
    return counts


@pytest.mark.parametrize(("name", "policy"), CASES)
def test_nothing_left_out_changes_no_bit(name, policy):
    model, pipe = build(name)
    asked = request(model, ["a red circle left"], seeds=[3], num_steps=STEPS)
    plain = samples_of(model, pipe(**asked))
    found, trace = sample(model, pipe, NOTHING[policy])
    assert torch.equal(found, plain)
    assert trace.work == trace.network_samples


@pytest.mark.parametrize("name", ["wan", "flux"])
def test_what_is_left_out_does_not_run(name):
    model, pipe = build(name)
    counts = count_blocks(model.transformer)
    _, trace = sample(model, pipe, FirstBlockGate(threshold=9.0))
    first, *others = sorted(counts.values(), reverse=True)
    assert len(others) == 4
    assert first == trace.network_calls
    assert set(others) == {trace.network_calls // STEPS}
    assert trace.work < trace.network_samples


@pytest.mark.parametrize("name", ["wan", "flux"])
def test_a_ridge_fit_is_made_and_used_through_the_pipeline(name):
    """One stream and two: what was summed replaces blocks, which then do not run."""
    model, pipe = build(name)
    asked = request(model, ["a red circle left"], seeds=[3], num_steps=STEPS)
    with torch.no_grad(), attach(pipe, "surrogate_profiler") as run:
        pipe(**asked)
    counts = count_blocks(model.transformer)
    gate = FastCache(threshold=9.0, surrogate="ridge", profile=run.profile())
    found, trace = sample(model, pipe, gate)
    assert found.isfinite().all()
    # the first step and the last one, which is also the one after three reuses
    assert set(counts.values()) == {2 * trace.network_calls // STEPS}
