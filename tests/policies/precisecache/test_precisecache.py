"""BlockCache against its steps written out plainly, and PreciseCache as a recipe."""

from __future__ import annotations

import pytest
import torch

from erta_framework import CFG, NoGuidance, Policy, Reuse, Traits, hookimpl
from erta_framework.config import build_policies
from erta_framework.errors import ConflictError, PolicyError
from erta_framework.modules import Select
from erta_framework.testing import AlternateSteps, BlockFlow
from erta_policies.lfcache import LFCache
from erta_policies.precisecache import BlockCache, PreciseCache
from erta_policies.taylorseer import RefreshInterval
from module_plans import gated, request, sample, visits

STEPS, DEPTH = 12, 5


class Plain(BlockFlow):
    """The steps of the block-level cache, for branches that are called in turn."""

    def __init__(self, ratio, length, branches):
        super().__init__(depth=DEPTH)
        self.skipped, self.length, self.branches = int(ratio * DEPTH), length, branches
        self.call, self.left, self.added, self.ran = 0, 0, {}, []

    def _predict(self, x, sigma, shift):
        branch, self.call = self.call % self.branches, self.call + 1
        profile = self.left == 0
        hidden = self.embed((x - shift).flatten(2).transpose(1, 2))
        if not profile and branch == 0 and self.left == self.length:
            sizes = [float(self.added[0, k].abs().mean()) for k in range(DEPTH)]
            self.out = sorted(range(DEPTH), key=sizes.__getitem__)[: self.skipped]
        for k, block in enumerate(self.blocks):
            if not profile and k in self.out:
                hidden = hidden + self.added[branch, k]
                continue
            after = block(hidden, 0.5 + sigma.reshape(-1, 1, 1))
            if profile:
                self.added[branch, k] = after - hidden
            hidden = after
        if branch == self.branches - 1:
            self.ran.append(DEPTH if profile else DEPTH - self.skipped)
            self.left = self.length if profile else self.left - 1
        return x - shift + self.head(hidden).transpose(1, 2).reshape(x.shape)


def run(*policies, network=None, guidance=None, batch=2, steps=STEPS):
    network = BlockFlow(depth=DEPTH) if network is None else network
    given = request(steps=steps, batch=batch)
    return sample(*policies, network=network, given=given, guidance=guidance or NoGuidance())


def count_run(trace):
    """How many blocks ran, for each step in which the network did."""
    return [step.calls[0].sites["block"][0] for step in trace.steps if step.computed]


@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.61, 1.0])
@pytest.mark.parametrize("length", [1, 3, 5])
@pytest.mark.parametrize("branches", [1, 2])
def test_it_is_the_algorithm(ratio, length, branches):
    plain = Plain(ratio, length, branches)
    guidance = NoGuidance() if branches == 1 else CFG(scale=2.0)
    expected = run(network=plain, guidance=guidance)
    found = run(BlockCache(skip_ratio=ratio, length=length), guidance=guidance)
    assert torch.equal(found.sample, expected.sample)
    assert count_run(found.trace) == plain.ran


def test_blocks_left_out_do_not_run():
    network = BlockFlow(depth=DEPTH)
    counts = visits(network, *(f"blocks.{k}.mlp.up" for k in range(DEPTH)))
    run(BlockCache(skip_ratio=0.4, length=3), network=network)
    # 12 executed steps are 3 profiles with 3 steps each behind them, in which 2 of 5 are left out
    assert sum(counts.values()) == 3 * DEPTH + 9 * (DEPTH - 2)


@pytest.mark.parametrize("policy", [BlockCache(skip_ratio=0.1), BlockCache(length=0)])
def test_nothing_left_out_changes_no_bit(policy):
    assert torch.equal(run(policy).sample, run().sample)


@pytest.mark.parametrize(("ratio", "length"), [(0.4, 3), (0.6, 3), (0.6, 1), (0.2, 5)])
def test_work_is_that_of_the_blocks_that_run(ratio, length):
    """1 - ratio L / (L + 1) of the work of the blocks, which are nearly all of this toy's."""
    steps = 2 * (length + 1)
    found = run(BlockCache(skip_ratio=ratio, length=length), steps=steps)
    whole = run(steps=steps).trace.work
    assert found.trace.work / whole == pytest.approx(1 - ratio * length / (length + 1), abs=0.02)


def test_the_published_work_fits_neither_reading_of_the_cache_rate():
    """Flash does .81 of Turbo's work on both models. 40 % or 60 % of the blocks would do less."""
    published = (122.4 / 151.0, 6.04 / 7.49)
    for skipped in (0.4, 0.6):
        work = 1 - skipped * 3 / 4
        assert all(work < ratio - 0.1 for ratio in published)


def test_steps_that_a_rule_leaves_out_do_not_count():
    policy = BlockCache(skip_ratio=0.4, length=2)
    ran = count_run(run(AlternateSteps(), policy).trace)
    assert ran == [5, 3, 3, 5, 3, 3, 5]  # steps 0, 2, 4, 6, 8, 10 and the last
    schedule = RefreshInterval(interval=3, first=1)
    assert count_run(run(schedule, policy).trace) == [5, 3, 3, 5]


def test_what_pivotal_blocks_added_is_dropped_after_they_are_ranked():
    held = []

    class Watch(BlockCache):
        @hookimpl
        def assign(self, step, call):
            found = super().assign(step, call)
            held.append(sum(bool(call.kept(place)) for place in call.sites))
            return found

    found = run(Watch(skip_ratio=0.4, length=3))
    # what was kept is dropped once the blocks are ranked; a profile step sees the rest of it
    assert held == [0, 2, 2, 2] + [2, 2, 2, 2] * 2
    assert found.trace.module_bytes == DEPTH * 2 * 32 * 8 * 4


class Rowwise(Policy):
    """Samples compute at steps of their own."""

    traits = Traits(decides="sample")
    steps: tuple[tuple[int, ...], ...]

    @hookimpl
    def decide(self, step, call):
        return Reuse("rows", mask=[step.index not in own for own in self.steps])


def test_samples_count_from_their_own_profiles():
    seen = {}

    class Watch(BlockCache):
        @hookimpl
        def assign(self, step, call):
            found = super().assign(step, call)
            seen[step.index] = (call.rows, len(found))
            return found

    rule = Rowwise(steps=((0, 2, 3, 5, 11), (0, 6, 11)))
    found = run(rule, Watch(skip_ratio=0.4, length=2))
    assert found.sample.isfinite().all()
    # each counts from its own profile; at 11 they leave out what both of them do
    assert [seen[k] for k in (0, 2, 3, 5, 6)] == [
        (None, 5),
        ((0,), 2),
        ((0,), 2),
        ((0,), 5),
        ((1,), 2),
    ]
    assert seen[11][1] <= 2


def test_the_first_branch_ranks_for_all():
    plans = {}

    class Watch(BlockCache):
        @hookimpl
        def assign(self, step, call):
            found = super().assign(step, call)
            plans.setdefault(step.index, []).append(frozenset(found))
            return found

    run(Watch(skip_ratio=0.4), guidance=CFG(scale=3.0))
    assert all(len(set(pair)) == 1 and len(pair) == 2 for pair in plans.values())


def test_an_exception_leaves_nothing_and_the_next_run_is_as_the_first():
    network, policy = BlockFlow(depth=DEPTH), BlockCache()
    first = run(policy, network=network)

    def fail(*_):
        raise RuntimeError("out of memory")

    hook = network.blocks[0].attn.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(policy, network=network)
    hook.remove()
    assert gated(network) == []
    assert torch.equal(run(policy, network=network).sample, first.sample)


def test_ranks_that_agree_on_steps_refuse_it():
    class Agrees(Policy):
        traits = Traits(collective=True)

        @hookimpl
        def decide(self, step):
            return None

    with pytest.raises(ConflictError, match=r"BlockCache.* decides inside the network"):
        run(Agrees(), BlockCache())


# ------------------------------------------------------------------------------- recipe
@pytest.mark.parametrize(
    ("variant", "alpha", "parts"),
    [("base", 0.5, 1), ("turbo", 0.7, 1), ("flash", 0.7, 2)],
)
def test_variants_are_the_published_ones(variant, alpha, parts):
    found = PreciseCache(variant=variant).parts()
    assert [type(part) for part in found] == [LFCache, BlockCache][:parts]
    assert found[0].alpha == alpha


def test_flash_leaves_out_steps_and_blocks():
    turbo, flash = (
        run(PreciseCache(variant=v, alpha=1.0), batch=1, steps=20).trace for v in ("turbo", "flash")
    )
    assert turbo.network_calls < 20
    assert turbo.work == turbo.network_samples
    assert flash.work < flash.network_samples < 20
    assert flash.trial_calls == 19
    ran = count_run(flash)
    assert ran == [5 if k % 4 == 0 else 3 for k in range(len(ran))]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BlockCache(skip_ratio=1.2), r"skip_ratio=1.2"),
        (lambda: BlockCache(length=-1), r"length=-1"),
        (lambda: BlockCache(blocks=Select(kind=("mlp",))), r"ranks single blocks"),
        (lambda: PreciseCache(variant="fast"), r"no variant 'fast'"),
        (lambda: PreciseCache(alpha=0.1, steps=LFCache()), r"which has its own"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, message):
    with pytest.raises(PolicyError, match=message):
        make()


def test_configuration():
    flash, blocks = build_policies(
        [
            {"precisecache": {"variant": "flash", "steps": {"lfcache": {"alpha": 0.6}}}},
            {"blockcache": {"skip_ratio": 0.25, "blocks": {"kind": ["block"], "depth": "0.5:"}}},
        ]
    )
    assert flash.parts()[0].alpha == 0.6
    assert blocks.blocks == Select(kind=("block",), depth="0.5:")
