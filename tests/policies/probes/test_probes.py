"""FBCache and DiCache on the block stacks of unmodified pipelines."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from erta_framework import Policy, Traits, hookimpl
from erta_framework.errors import CapabilityError, PolicyError
from erta_integrations.diffusers import attach
from erta_policies.dicache import DiCache, ProbeRule, TwoAnchors
from erta_policies.fbcache import FBCache, FirstBlockRule, ProbeReuse
from tiny_pipelines import FAMILIES

STEPS = 12


@dataclass
class Seen:
    """One call of one branch at the trunk."""

    index: int
    branch: str
    x: Tensor
    probe: Tensor
    output: Tensor
    ran: bool


class Recorder(Policy):
    """Notes what went into the trunk, the probe, and what came out."""

    log: list

    traits = Traits(requires=frozenset({"signal:probe:1"}))

    @hookimpl(wrapper=True)
    def forward(self, step, call):
        output = yield
        probe = call.feature("probe:1")
        self.log.append(
            Seen(step.index, call.branch, call.x.clone(), probe.clone(), output.clone(), call.ran)
        )
        return output


def recorded(name, policies, **options):
    family, log = FAMILIES[name], []
    pipe = family.build()
    with attach(pipe, [Recorder(log=log), *policies], seam="trunk") as run:
        latents = family.run(pipe, STEPS, **options)
    return latents, run.traces[0], log


def by_branch(log):
    found: dict[str, list[Seen]] = {}
    for seen in log:
        found.setdefault(seen.branch, []).append(seen)
    return found


def mad(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().mean())


def rel(now: Tensor, before: Tensor) -> float:
    return mad(now, before) / float(before.abs().mean())


@pytest.mark.parametrize("name", ["wan-euler", "flux"])
@pytest.mark.parametrize("threshold", [0.02, 0.1, 0.4])
def test_dicache_is_the_published_algorithm(name, threshold):
    """The step list of DiCache (arXiv 2508.17356) and of its code, written down plainly."""
    limit = 1.5
    policy = DiCache(threshold=threshold, limit=limit, warmup=0.25)
    _, trace, log = recorded(name, [policy])
    skipped = 0
    for branch, calls in by_branch(log).items():
        total, anchors = 0.0, []
        before = None
        for seen in calls:
            forced = seen.index < int(0.25 * STEPS)
            q = seen.probe - seen.x
            skip = False
            if not forced:
                assert before is not None
                total += rel(seen.probe, before.probe)
                skip = total < threshold
            if seen.index == 0 or forced or not skip:
                total = 0.0
            assert seen.ran == (not skip), (branch, seen.index)
            if skip:
                skipped += 1
                (r1, q1), (r2, q2) = anchors[0], anchors[1]
                place = min(max(mad(q, q2) / mad(q1, q2), 1.0), limit)
                expected = seen.x + r2 + place * (r1 - r2)
                torch.testing.assert_close(seen.output, expected, rtol=1e-5, atol=1e-5)
            else:
                anchors = [(seen.output - seen.x, q), *anchors][:2]
            before = seen
    assert skipped == trace.reused_calls
    if threshold == 0.4:
        assert skipped > 0


@pytest.mark.parametrize("name", ["wan-euler", "flux"])
@pytest.mark.parametrize("threshold", [0.02, 0.2, 1.0])
def test_fbcache_is_the_published_algorithm(name, threshold):
    """ParaAttention's first-block cache, with the decision of the first branch for the step."""
    _, trace, log = recorded(name, [FBCache(threshold=threshold)])
    first = next(iter(by_branch(log)))
    decided: dict[int, bool] = {}
    for branch, calls in by_branch(log).items():
        reference = tail = None
        for seen in calls:
            residual = seen.probe - seen.x
            if branch == first:
                decided[seen.index] = reference is not None and rel(residual, reference) < threshold
            assert seen.ran == (not decided[seen.index]), (branch, seen.index)
            if seen.ran:
                reference, tail = residual, seen.output - seen.probe
            else:
                expected = seen.probe + tail
                torch.testing.assert_close(seen.output, expected, rtol=1e-5, atol=1e-5)
    if threshold == 1.0:
        assert trace.reused_calls > 0


@pytest.mark.parametrize("policy", [DiCache(threshold=0.0), FBCache(threshold=0.0)])
@pytest.mark.parametrize("name", ["wan-euler", "flux", "hunyuan-video", "cogvideox"])
def test_nothing_skipped_is_bit_identical(name, policy):
    family = FAMILIES[name]
    pipe = family.build()
    plain = family.run(pipe, STEPS)
    with attach(pipe, [policy], seam="trunk") as run:
        assert torch.equal(family.run(pipe, STEPS), plain)
    assert run.traces[0].reused_calls == 0
    assert {call.signals for call in run.traces[0].calls() if call.index > 0} == {("probe:1",)}


def test_a_skip_runs_one_block_and_everything_is_forgotten_between_requests():
    family = FAMILIES["wan-euler"]
    pipe = family.build()
    runs: list[int] = []
    for index, block in enumerate(pipe.transformer.blocks):
        block.attn1.register_forward_pre_hook(lambda *_, index=index: runs.append(index))
    with attach(pipe, [DiCache(threshold=math.inf)], seam="trunk") as run:
        first = family.run(pipe, STEPS)
        blocks, calls = len(pipe.transformer.blocks), run.traces[0].calls()
        assert len(runs) == sum(blocks if call.computed else 1 for call in calls)
        assert run.traces[0].computed_steps == (0, 1)
        assert torch.equal(family.run(pipe, STEPS), first)


def test_forced_steps_follow_the_released_code():
    def forced(policy, steps=20):
        family = FAMILIES["flux"]
        pipe = family.build()
        with attach(pipe, [policy], seam="trunk") as run:
            family.run(pipe, steps)
        return run.traces[0].computed_steps

    inf = math.inf
    assert forced(DiCache(model="flux.1-dev", threshold=inf)) == (0, 1, 2, 3, 4, 19)
    assert forced(DiCache(model="hunyuan-video", threshold=inf)) == (0, 1, 2, 3)
    assert forced(DiCache(model="wan2.1", threshold=inf, last=True)) == (0, 1, 2, 3, 19)


def test_published_values():
    """delta and clip of the released code; the paper's table has 0.2 for Wan 2.1 1.3B."""

    def values(model):
        parts = {part.name: part for part in DiCache(model=model).parts()}
        return parts["probe_rule"].threshold, parts["two_anchors"].limit

    assert values("flux.1-dev") == (0.4, 1.5)
    assert values("hunyuan-video") == (0.1, 1.5)
    assert values("wan2.1") == (0.08, 2.0)
    assert values("wan2.1-paper") == (0.2, 2.0)


def test_samples_of_a_batch_that_disagree_compute_together():
    _, trace, _ = recorded("wan-euler", [FBCache(threshold=0.2)], batch=3)
    for call in trace.calls():
        assert call.rows is None
    _, mean, _ = recorded("wan-euler", [FBCache(threshold=0.2, per_sample=False)], batch=3)
    assert all("for part of the batch" not in call.reason for call in mean.calls())


def test_the_alternative_error_and_one_decision_for_all_branches():
    _, trace, log = recorded(
        "wan-euler", [DiCache(threshold=0.3, error="difference", branches="first")]
    )
    for step in trace.steps:
        assert len({call.computed for call in step.calls}) == 1
    calls = next(iter(by_branch(log).values()))
    total, before = 0.0, None
    for seen in calls:
        if seen.index >= int(0.2 * STEPS):
            total += abs(rel(seen.probe, before.probe) - rel(seen.x, before.x))
            assert seen.ran == (not total < 0.3)
        if seen.ran:
            total = 0.0
        before = seen


def test_a_probe_is_needed():
    pipe = FAMILIES["wan-euler"].build()
    for policy in (DiCache(threshold=0.1), FBCache()):
        with pytest.raises(CapabilityError, match="probe:1"):
            attach(pipe, [policy])


def test_settings_out_of_range_are_refused():
    for make, words in (
        (lambda: DiCache(), "model= or threshold="),
        (lambda: DiCache(model="sdxl"), "publishes nothing for 'sdxl'"),
        (lambda: ProbeRule(threshold=-1.0), "threshold of ProbeRule"),
        (lambda: ProbeRule(depth=0), "depth of ProbeRule is 0"),
        (lambda: TwoAnchors(limit=0.5), "limit of TwoAnchors"),
        (lambda: FirstBlockRule(threshold=math.nan), "threshold of FirstBlockRule"),
        (lambda: ProbeReuse(depth=0), "depth of ProbeReuse"),
    ):
        with pytest.raises(PolicyError, match=words):
            make()
