"""FastCache on unmodified pipelines: nothing reused is nothing changed, and samples stay apart."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from erta_framework.errors import CapabilityError
from erta_framework.modules import Select
from erta_integrations.diffusers import attach
from erta_policies.fastcache import DriftGate, FastCache, SurrogateProfiler, TokenSplit
from module_plans import gated
from tiny_pipelines import FAMILIES

STEPS = 8
NAMES = ("wan-euler", "flux", "sd3", "hunyuan-video", "cogvideox", "pixart-sigma", "qwen-image")
NEVER = DriftGate(threshold=0.0)


def run(name, policies=(), batch=1):
    family = FAMILIES[name]
    pipe = family.build()
    with attach(pipe, list(policies)) as attached:
        latents = family.run(pipe, STEPS, batch=batch)
    assert not any(gated(part) for part in pipe.components.values() if hasattr(part, "modules"))
    return latents, attached


def plain(name, batch=1):
    family = FAMILIES[name]
    return family.run(family.build(), STEPS, batch=batch)


def count_blocks(trace):
    """How many blocks ran, for each call."""
    return [call.sites["block"][0] for call in trace.calls()]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("policy", [NEVER, FastCache(threshold=0.0), SurrogateProfiler()])
def test_nothing_reused_changes_no_bit(name, policy):
    latents, _ = run(name, [policy])
    assert torch.equal(latents, plain(name))


@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_replaced_until_they_are_too_old(name):
    latents, attached = run(name, [DriftGate(threshold=9.0, most=2, per_sample=False)])
    assert latents.isfinite().all()
    (trace,) = attached.traces
    for branch in {call.branch for call in trace.calls()}:
        ran = [call.sites["block"][1] for call in trace.calls() if call.branch == branch]
        assert [n > 0 for n in ran] == [k not in (0, 3, 6, 7) for k in range(STEPS)]


@pytest.mark.parametrize("name", ["wan-euler", "flux"])
def test_blocks_that_run_are_counted_by_hooks(name):
    family = FAMILIES[name]
    pipe, counts = family.build(), Counter()
    lists = ("blocks", "transformer_blocks", "single_transformer_blocks")
    for path, block in pipe.transformer.named_modules():
        if path.rpartition(".")[0] in lists:
            inner = next(m for m in block.modules() if m is not block and list(m.parameters(False)))
            inner.register_forward_pre_hook(lambda *_, path=path: counts.update([path]))
    with attach(pipe, [DriftGate(threshold=9.0, most=2)]) as attached:
        family.run(pipe, STEPS)
    (trace,) = attached.traces
    branches = len({call.branch for call in trace.calls()})
    assert set(counts.values()) == {4 * branches}
    assert sum(counts.values()) == sum(count_blocks(trace))


@pytest.mark.parametrize("name", ["wan-euler", "flux", "hunyuan-video", "cogvideox"])
def test_groups_replace_blocks_of_one_and_two_streams(name):
    settings = {"per_sample": False, "most": 2}
    never, _ = run(name, [DriftGate(threshold=0.0, group=3, **settings)])
    assert torch.equal(never, plain(name))
    grouped, attached = run(name, [DriftGate(threshold=9.0, group=3, **settings)])
    assert grouped.isfinite().all()
    alone = run(name, [DriftGate(threshold=9.0, **settings)])[1].traces[0]
    (trace,) = attached.traces
    assert trace.module_bytes < alone.module_bytes
    assert count_blocks(trace) == count_blocks(alone)


@pytest.mark.parametrize("name", ["wan-euler", "flux", "hunyuan-video", "qwen-image", "cogvideox"])
@pytest.mark.parametrize("surrogate", ["affine", "ridge"])
def test_fitted_surrogates_replace_blocks_of_one_and_two_streams(name, surrogate):
    (profile,) = run(name, [SurrogateProfiler()])[1].emitted
    gate = DriftGate(threshold=9.0, surrogate=surrogate, profile=profile)
    latents, attached = run(name, [gate])
    assert latents.isfinite().all()
    assert not torch.equal(latents, run(name, [DriftGate(threshold=9.0)])[0])
    assert attached.traces[0].work < 0.9 * STEPS * 2


@pytest.mark.parametrize("name", ["wan-euler", "flux", "sd3"])
@pytest.mark.parametrize("threshold", [0.02, 0.05, 0.2])
def test_samples_of_a_batch_are_what_they_are_alone(name, threshold):
    """The first of two samples is that of a batch of one, from the same noise."""
    alone, _ = run(name, [DriftGate(threshold=threshold)])
    together, _ = run(name, [DriftGate(threshold=threshold)], batch=2)
    first, full = plain(name), plain(name, batch=2)
    if torch.allclose(first, full[:1], atol=1e-4):  # else the pipelines draw other noise
        torch.testing.assert_close(together[:1], alone, rtol=1e-3, atol=1e-3)
    assert together.isfinite().all()


def test_the_image_decides_for_both_streams():
    """FLUX's blocks get image and text; text that stands still does not hold the image back."""
    seen = []

    class Watch(DriftGate):
        def decide_reuse(self, group, visit):
            seen.append((next(iter(group.entered)), sorted(visit.streams)[:2]))
            return super().decide_reuse(group, visit)

    run("flux", [Watch(threshold=0.1)])
    assert {lead for lead, _ in seen} == {"hidden_states"}


@pytest.mark.parametrize("name", ["wan-euler", "pixart-sigma"])
def test_mlps_run_on_some_tokens(name):
    family, sizes = FAMILIES[name], set()
    pipe = family.build()
    for path, module in pipe.transformer.named_modules():
        if path.endswith(("ffn.net.0", "ff.net.0")):
            module.register_forward_pre_hook(lambda _, args: sizes.add(args[0].shape[1]))
    with attach(pipe, [TokenSplit(motion=0.9, full=1.0)]) as attached:
        assert family.run(pipe, STEPS).isfinite().all()
    assert len(sizes) > 1
    assert attached.traces[0].work < attached.traces[0].network_samples
    whole, _ = run(name, [TokenSplit(full=0.0)])
    assert torch.equal(whole, plain(name))


def test_the_split_can_be_kept_off_fused_blocks():
    double = Select(kind=("mlp",), stack=r"(.*\.)?transformer_blocks")
    latents, _ = run("flux", [TokenSplit(mlps=double, motion=0.3, full=1.0)])
    assert latents.isfinite().all()


def test_networks_without_blocks_of_a_trunk_say_what_there_is():
    with pytest.raises(CapabilityError, match=r"there are \d+ "):
        run("sd", [DriftGate(blocks=Select(kind=("block",), stack="nothing"))])
