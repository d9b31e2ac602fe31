"""SmoothCache, Spectrum, FreqCa and ClusCa on unmodified pipelines."""

from __future__ import annotations

import pytest
import torch

from erta_integrations.diffusers import attach
from erta_policies.clusca import ClusCa
from erta_policies.freqca import FreqCa
from erta_policies.smoothcache import SmoothCache, SmoothCacheProfiler
from erta_policies.spectrum import Spectrum
from erta_policies.taylorseer import TaylorSeer
from module_plans import gated
from tiny_pipelines import FAMILIES

STEPS = 6
NAMES = ("wan-euler", "flux", "sd", "sd3", "pixart-sigma")


def run(name, policies, batch=1):
    family = FAMILIES[name]
    pipe = family.build()
    with attach(pipe, list(policies)) as attached:
        latents = family.run(pipe, STEPS, batch=batch)
    assert not any(gated(part) for part in pipe.components.values() if hasattr(part, "modules"))
    return latents, attached


@pytest.mark.parametrize("name", NAMES)
def test_measuring_changes_no_bit_and_a_schedule_follows(name):
    family = FAMILIES[name]
    plain = family.run(family.build(), STEPS)
    latents, full = run(name, [SmoothCacheProfiler()])
    assert torch.equal(latents, plain)
    assert full.traces[0].work == full.traces[0].network_samples
    profile = full.profile()
    latents, whole = run(name, [SmoothCache(profile=profile, threshold=0.0)])
    assert torch.equal(latents, plain)
    assert whole.traces[0].work == whole.traces[0].network_samples
    latents, reused = run(name, [SmoothCache(profile=profile, threshold=9.0)])
    assert latents.isfinite().all()
    assert reused.traces[0].work < reused.traces[0].network_samples
    assert reused.traces[0].network_calls == full.traces[0].network_calls


@pytest.mark.parametrize("name", ["flux", "wan-euler"])
def test_a_budget_of_work_is_kept(name):
    profile = run(name, [SmoothCacheProfiler()])[1].profile()
    trace = run(name, [SmoothCache(profile=profile, budget={"work": 4.5})])[1].traces[0]
    assert trace.work <= 4.5 / STEPS * trace.network_samples + 1e-6


EVERY_STEP = (
    Spectrum(window=1.0, growth=0.0, first=1),
    Spectrum(level="blocks", window=1.0, growth=0.0, first=1),
    FreqCa(interval=1),
    FreqCa(level="blocks", interval=1),
    ClusCa(interval=1, clusters=2),
)


@pytest.mark.parametrize("name", ["wan-euler", "flux", "pixart-sigma"])
@pytest.mark.parametrize("policy", EVERY_STEP, ids=lambda policy: policy.name)
def test_every_step_computed_changes_no_bit(name, policy):
    family = FAMILIES[name]
    latents, attached = run(name, [policy])
    assert torch.equal(latents, family.run(family.build(), STEPS))
    trace = attached.traces[0]
    assert trace.work == trace.network_samples


def test_whole_outputs_of_a_unet_change_no_bit():
    family = FAMILIES["sd"]
    for policy in (EVERY_STEP[0], FreqCa(interval=1), FreqCa(interval=1, transform="dct")):
        assert torch.equal(run("sd", [policy])[0], family.run(family.build(), STEPS))


REUSED = (
    Spectrum(growth=1.0, first=2),
    Spectrum(level="blocks", growth=1.0, first=2),
    FreqCa(interval=3),
    FreqCa(level="blocks", interval=3),
    ClusCa(interval=3, clusters=2, ratio=0.3),
)


@pytest.mark.parametrize("name", ["wan-euler", "flux", "pixart-sigma"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("policy", REUSED, ids=lambda policy: policy.name)
def test_reuse_saves_work(name, policy, batch):
    latents, attached = run(name, [policy], batch)
    trace = attached.traces[0]
    assert latents.isfinite().all()
    assert trace.work < trace.network_samples or trace.reused_calls


@pytest.mark.parametrize("name", ["wan-euler", "flux", "pixart-sigma"])
def test_without_a_ratio_clusca_is_taylorseer(name):
    plain = TaylorSeer(interval=3, order=2, first=2, level="modules")
    found, expected = run(name, [ClusCa(interval=3, ratio=0.0)]), run(name, [plain])
    assert torch.equal(found[0], expected[0])


def test_mlps_of_a_pipeline_run_on_a_token_of_each_cluster():
    family = FAMILIES["wan-euler"]
    pipe, sizes = family.build(), []
    inner = pipe.transformer.blocks[0].ffn.net[0].proj
    inner.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[1]))
    with attach(pipe, [ClusCa(interval=3, clusters=2, ratio=0.3)]):
        family.run(pipe, STEPS)
    assert set(sizes[:4]) == {max(sizes)}
    assert sizes.count(2) == 2 * 3  # steps 2, 3 and 5, two branches
