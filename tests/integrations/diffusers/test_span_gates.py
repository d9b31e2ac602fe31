"""H2-Cache and first-block gates on unmodified pipelines."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from erta_framework.errors import CapabilityError
from erta_integrations.diffusers import attach
from erta_policies.fbcache import FBCache
from erta_policies.h2cache import FirstBlockGate, H2Cache, count_outcomes
from module_plans import gated
from tiny_pipelines import FAMILIES

STEPS = 10
NAMES = ("wan-euler", "flux", "sd3", "hunyuan-video", "cogvideox", "pixart-sigma", "qwen-image")
DOUBLE_AND_SINGLE = ("flux", "hunyuan-video", "chroma", "flux2")


def run(name, policies=(), batch=1, **options):
    family = FAMILIES[name]
    pipe = family.build()
    with attach(pipe, list(policies), **options) as attached:
        latents = family.run(pipe, STEPS, batch=batch)
    assert not any(gated(part) for part in pipe.components.values() if hasattr(part, "modules"))
    return latents, attached.traces[0]


def plain(name):
    family = FAMILIES[name]
    return family.run(family.build(), STEPS)


def list_hits(trace, branch):
    """Whether the span was left out, for each step of a branch."""
    calls = [call for call in trace.calls() if call.branch == branch]
    return [not call.sites["span"][0] for call in calls]


@pytest.mark.parametrize("name", NAMES)
def test_a_gate_that_never_reuses_changes_no_bit(name):
    latents, trace = run(name, [FirstBlockGate(threshold=0.0)])
    assert torch.equal(latents, plain(name))
    assert not any(any(list_hits(trace, branch)) for branch in {c.branch for c in trace.calls()})


@pytest.mark.parametrize("name", [*NAMES, "sd", "ltx", "flux-true-cfg"])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_gate_that_always_reuses_runs_its_span_once(name, batch):
    latents, trace = run(name, [FirstBlockGate(threshold=9.0, each_branch=False)], batch)
    assert latents.isfinite().all()
    for branch in {call.branch for call in trace.calls()}:
        assert list_hits(trace, branch) == [False] + [True] * (STEPS - 1)


@pytest.mark.parametrize("name", DOUBLE_AND_SINGLE)
def test_stages_that_never_reuse_change_no_bit(name):
    latents, trace = run(name, [H2Cache(tau1=0.0, tau2=0.0)])
    assert torch.equal(latents, plain(name))
    assert count_outcomes(trace)["MM"] == len(list(trace.calls()))


@pytest.mark.parametrize("name", DOUBLE_AND_SINGLE)
def test_double_and_single_blocks_are_the_two_stages(name):
    latents, trace = run(name, [H2Cache(tau1=9.0, tau2=9.0)])
    assert latents.isfinite().all()
    counted = count_outcomes(trace)
    branches = len({call.branch for call in trace.calls()})
    assert counted == {"HH": branches * (STEPS - 1), "MH": 0, "MM": branches}


@pytest.mark.parametrize("name", ["wan-euler", "flux", "hunyuan-video", "qwen-image"])
@pytest.mark.parametrize("threshold", [0.02, 0.05, 0.1, 0.3])
def test_a_gate_decides_as_fbcache_does(name, threshold):
    """On the same inputs: the first hit changes what later steps see by rounding alone."""
    latents, gate = run(name, [FirstBlockGate(threshold=threshold)])
    policy = FBCache(threshold=threshold, per_sample=False)
    expected, trunk = run(name, [policy], seam="trunk")
    for branch in {call.branch for call in trunk.calls()}:
        reused = [not call.computed for call in trunk.calls() if call.branch == branch]
        assert list_hits(gate, branch) == reused
    torch.testing.assert_close(latents, expected, rtol=1e-3, atol=1e-3)


def test_some_of_these_thresholds_reuse_and_some_do_not():
    for threshold, some in ((0.02, False), (0.3, True)):
        assert any(list_hits(run("flux", [FirstBlockGate(threshold=threshold)])[1], "cond")) is some


def test_a_network_without_two_lists_needs_a_split():
    with pytest.raises(CapabilityError, match=r"split=None.*there are 2 block in blocks"):
        run("wan-euler", [H2Cache()])


def test_a_gate_beside_the_trunk_seam_is_refused_by_name():
    with pytest.raises(CapabilityError, match="blocks"):
        run("wan-euler", [FirstBlockGate()], seam="trunk")


@pytest.mark.parametrize("tau2", [-1.0, 9.0])
def test_blocks_that_run_are_counted_by_hooks(tau2):
    family = FAMILIES["flux"]
    pipe, counts = family.build(), Counter()
    lists = ("transformer_blocks", "single_transformer_blocks")
    for path in [f"{name}.{place}" for name in lists for place in (0, 1)]:
        block = pipe.transformer.get_submodule(path)
        inner = next(m for m in block.modules() if m is not block and list(m.parameters(False)))
        inner.register_forward_pre_hook(lambda *_, path=path: counts.update([path]))
    with attach(pipe, [H2Cache(tau1=-1.0, tau2=tau2)]) as attached:
        family.run(pipe, STEPS)
    assert counts == {
        "transformer_blocks.0": STEPS,
        "transformer_blocks.1": STEPS,
        "single_transformer_blocks.0": STEPS,
        "single_transformer_blocks.1": 1 if tau2 > 0 else STEPS,
    }
    (trace,) = attached.traces
    assert trace.network_calls == STEPS
    assert trace.work < STEPS or tau2 < 0
