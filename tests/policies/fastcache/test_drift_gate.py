"""DriftGate against its steps written out plainly; decisions of samples, ages, groups and ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from erta_framework import CFG, NoGuidance, Policy, Reuse, Traits, hookimpl
from erta_framework.config import build_policies
from erta_framework.errors import CapabilityError, PolicyError, ProfileError, ProfileMismatchError
from erta_framework.modules import Select
from erta_framework.testing import AlternateSteps, BlockFlow
from erta_policies.fastcache import DriftGate, FastCache, SurrogateProfiler
from erta_policies.shared import SurrogateTable, measure_drift
from module_plans import gated, request, sample, visits

STEPS, DEPTH = 12, 4
PATHS = [f"blocks.{k}" for k in range(DEPTH)]


def run(*policies, network=None, guidance=None, batch=2, given=None, steps=STEPS):
    network = BlockFlow(depth=DEPTH) if network is None else network
    given = request(batch, steps) if given is None else given
    return sample(*policies, network=network, given=given, guidance=guidance or NoGuidance())


def row_of(given, row):
    part = slice(row, row + 1)
    return replace(
        given, latents=given.latents[part], cond=given.cond[part], uncond=given.uncond[part]
    )


PLAIN = run()
PROFILE = run(SurrogateProfiler()).emitted[0]


class Plain(BlockFlow):
    """One sample and branch, with the gate written out."""

    def __init__(self, threshold, most, accumulate=False, surrogate="residual"):
        super().__init__(depth=DEPTH)
        self.threshold, self.most, self.accumulate = threshold, most, accumulate
        self.table = SurrogateTable(PROFILE, surrogate, 1e-3, None)
        self.kept, self.index, self.ran = {}, 0, []

    def _predict(self, x, sigma, shift):
        hidden, count = self.embed((x - shift).flatten(2).transpose(1, 2)), 0
        for k, block in enumerate(self.blocks):
            at, entered, added, held = self.kept.get(k, (-99, hidden, None, 0.0))
            drift = float((hidden - entered).norm() / entered.norm()) / self.threshold
            total = held + drift if self.accumulate else drift
            last = self.index == STEPS - 1
            if added is not None and self.index - at <= self.most and total <= 1 and not last:
                now = hidden
                hidden = self.table.find(PATHS[k], 0, self.index, STEPS)(now, entered, added)
                self.kept[k] = (at, entered, added, total)
                continue
            after = block(hidden, 0.5 + sigma.reshape(-1, 1, 1))
            self.kept[k] = (self.index, hidden, after - hidden, 0.0)
            hidden, count = after, count + 1
        self.ran.append(count)
        self.index += 1
        return x - shift + self.head(hidden).transpose(1, 2).reshape(x.shape)


def count_run(trace):
    return [step.calls[0].sites["block"][0] for step in trace.steps]


@pytest.mark.parametrize("surrogate", ["residual", "affine", "ridge"])
@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("accumulate", [False, True])
def test_it_is_the_algorithm(surrogate, most, accumulate):
    plain = Plain(0.3, most, accumulate, surrogate)
    expected = run(network=plain, batch=1)
    profile = None if surrogate == "residual" else PROFILE
    policy = DriftGate(
        threshold=0.3, most=most, accumulate=accumulate, surrogate=surrogate, profile=profile
    )
    found = run(policy, batch=1)
    assert torch.allclose(found.sample, expected.sample, atol=1e-5)
    assert count_run(found.trace) == plain.ran
    assert DEPTH * 2 < sum(plain.ran) < DEPTH * STEPS


def draw_unlike(batch):
    """Samples whose inputs move by different amounts."""
    given = request(batch, STEPS)
    scale = torch.tensor([1.0, 0.02, 4.0])[:batch].reshape(-1, 1, 1, 1, 1)
    return replace(given, latents=given.latents * scale)


@pytest.mark.parametrize("threshold", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("guidance", [NoGuidance(), CFG(scale=2.0)])
def test_samples_of_a_batch_are_what_they_are_alone(threshold, guidance):
    """Samples that differ: blocks run on some of them."""
    given, network, sizes = draw_unlike(3), BlockFlow(depth=DEPTH), []
    network.blocks[1].attn.register_forward_pre_hook(lambda m, args: sizes.append(len(args[0])))
    together = run(DriftGate(threshold=threshold), network=network, given=given, guidance=guidance)
    assert {1, 2} & set(sizes)  # it ran on some
    for row in range(3):
        alone = run(DriftGate(threshold=threshold), given=row_of(given, row), guidance=guidance)
        assert torch.allclose(together.sample[row], alone.sample[0], atol=1e-4)


def test_the_worst_sample_decides_where_one_decision_is_asked_for():
    given, network, sizes = draw_unlike(2), BlockFlow(depth=DEPTH), []
    for block in network.blocks:
        block.attn.register_forward_pre_hook(lambda m, args: sizes.append(len(args[0])))
    policy = DriftGate(threshold=0.1, per_sample=False)
    together = count_run(run(policy, network=network, given=given).trace)
    assert set(sizes) == {2}
    alone = [count_run(run(policy, given=row_of(given, k)).trace) for k in range(2)]
    assert sum(together) >= max(map(sum, alone)) > min(map(sum, alone))


@pytest.mark.parametrize(
    "policy",
    [
        DriftGate(threshold=0.0),
        DriftGate(threshold=-1.0, surrogate="ridge", profile=PROFILE),
        DriftGate(threshold=0.0, group=2, per_sample=False),
        FastCache(threshold=0.0),
    ],
)
def test_nothing_reused_changes_no_bit(policy):
    assert torch.equal(run(policy).sample, PLAIN.sample)


def test_zero_matrices_are_residual_reuse_to_the_bit():
    cross = torch.zeros_like(PROFILE.statistics["cross.0"])
    nothing = replace(PROFILE, statistics={**PROFILE.statistics, "cross.0": cross})
    ridge = run(DriftGate(threshold=0.3, surrogate="ridge", profile=nothing))
    assert torch.equal(ridge.sample, run(DriftGate(threshold=0.3)).sample)


def test_replaced_blocks_do_not_run_and_the_work_says_so():
    network = BlockFlow(depth=DEPTH)
    counts = visits(network, *(f"{path}.mlp.up" for path in PATHS))
    found = run(DriftGate(threshold=9.0, most=3), network=network)
    # steps 0, 4, 8 and the last one
    assert set(counts.values()) == {4}
    assert count_run(found.trace) == [DEPTH if k in (0, 4, 8, 11) else 0 for k in range(STEPS)]
    assert found.trace.work < 0.45 * PLAIN.trace.work


def test_ages_count_steps_that_a_rule_leaves_out():
    found = run(AlternateSteps(), DriftGate(threshold=9.0, most=3))
    ran = [
        (step.index, step.calls[0].sites["block"][0]) for step in found.trace.steps if step.computed
    ]
    assert ran == [(0, 4), (2, 0), (4, 4), (6, 0), (8, 4), (10, 0), (11, 4)]


def test_accumulated_drift_ends_a_reuse_that_single_drifts_would_not():
    single = count_run(run(DriftGate(threshold=0.3, most=9), batch=1).trace)
    added = count_run(run(DriftGate(threshold=0.3, most=9, accumulate=True), batch=1).trace)
    assert sum(added) > sum(single)


def test_the_input_that_counts_is_that_of_the_last_run():
    """An input that creeps by less than the threshold a step is not reused for ever."""

    class Creep(BlockFlow):
        def _predict(self, x, sigma, shift):
            self.index = getattr(self, "index", -1) + 1
            hidden = torch.full((x.shape[0], 4, 8), 1.0) * 1.04**self.index
            for block in self.blocks:
                block(hidden, torch.ones(1, 1, 1))
            return x - shift

    network = Creep(depth=1)
    counts = visits(network, "blocks.0.mlp.up")
    run(DriftGate(threshold=0.1, most=99), network=network)
    assert counts["blocks.0.mlp.up"] == 5  # 1.04^3 is the first above 1.1: 0, 3, 6, 9 and the last


def test_a_zero_input_has_nothing_to_compare_with():
    drift = measure_drift(torch.ones(1, 2, 2), torch.zeros(1, 2, 2), over="whole")
    assert torch.isinf(drift).all()

    class Zero(BlockFlow):
        def _predict(self, x, sigma, shift):
            self.index = getattr(self, "index", -1) + 1
            hidden = torch.full((x.shape[0], 4, 8), float(self.index > 0))
            for block in self.blocks:
                block(hidden, torch.ones(1, 1, 1))
            return x - shift

    network = Zero(depth=1)
    counts = visits(network, "blocks.0.mlp.up")
    run(DriftGate(threshold=1e6, most=99), network=network)
    assert counts["blocks.0.mlp.up"] == 3  # 0, 1 and the last


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_do_no_harm(steps):
    found = run(DriftGate(threshold=9.0), steps=steps)
    assert found.sample.isfinite().all()
    if steps < 3:
        assert torch.equal(found.sample, run(steps=steps).sample)


# ------------------------------------------------------------------------------- groups
def test_a_group_keeps_what_one_block_does():
    alone = run(DriftGate(threshold=9.0, per_sample=False))
    pairs = run(DriftGate(threshold=9.0, per_sample=False, group=2))
    every = run(DriftGate(threshold=9.0, per_sample=False, group=DEPTH))
    held = [found.trace.module_bytes for found in (alone, pairs, every)]
    assert held[0] == 2 * held[1] == 4 * held[2]
    assert all(count_run(f.trace) == count_run(alone.trace) for f in (pairs, every))


def test_a_group_is_its_blocks_as_one():
    """Four blocks that share a decision are one block of them all."""

    class Joined(nn.Module):
        def __init__(self, blocks):
            super().__init__()
            self.attn, self.mlp = blocks[0].attn, blocks[0].mlp
            self.all = list(blocks)  # no list of blocks of its own

        def forward(self, hidden_states, gate):
            for block in self.all:
                hidden_states = block(hidden_states, gate)
            return hidden_states

    network = BlockFlow(depth=DEPTH)
    network.blocks = nn.ModuleList([Joined(network.blocks)])
    expected = run(DriftGate(threshold=0.3, per_sample=False), network=network)
    found = run(DriftGate(threshold=0.3, per_sample=False, group=DEPTH))
    assert torch.allclose(found.sample, expected.sample, atol=1e-6)
    assert [c // DEPTH for c in count_run(found.trace)] == count_run(expected.trace)


# ------------------------------------------------------------------------------- errors
class Rotary(BlockFlow):
    """Its blocks are given something of which nobody knows whose it is."""

    def __init__(self, strange):
        super().__init__(depth=1)
        block, self.strange = self.blocks[0], strange

        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.attn, self.mlp = block.attn, block.mlp

            def forward(self, hidden_states, gate, extra):
                return hidden_states + gate * self.mlp(hidden_states)

        self.blocks = nn.ModuleList([Block()])

    def _predict(self, x, sigma, shift):
        hidden = self.embed((x - shift).flatten(2).transpose(1, 2))
        for block in self.blocks:
            hidden = block(hidden, 0.5 + sigma.reshape(-1, 1, 1), self.strange)
        return x - shift + self.head(hidden).transpose(1, 2).reshape(x.shape)


def test_blocks_that_cannot_run_on_some_samples_are_refused_at_once():
    network = Rotary((torch.ones(5),))
    with pytest.raises(CapabilityError, match=r"extra tuple.*give drift_gate per_sample=False"):
        run(DriftGate(), network=network)
    assert gated(network) == []
    assert run(DriftGate(per_sample=False), network=network).sample.isfinite().all()
    assert run(DriftGate(), network=network, batch=1).sample.isfinite().all()


def test_the_profile_must_be_of_this_run_and_of_these_blocks():
    policy = DriftGate(surrogate="ridge", profile=PROFILE)
    with pytest.raises(ProfileMismatchError, match="num_steps"):
        run(policy, steps=STEPS - 1)
    allowed = ("num_steps", "sigma_grid")
    allowing = DriftGate(surrogate="ridge", profile=PROFILE, allow=allowed)
    assert run(allowing, steps=STEPS - 1).sample.isfinite().all()
    deep = run(SurrogateProfiler(blocks=Select(kind=("block",), depth="2:"))).emitted[0]
    with pytest.raises(ProfileError, match=r"no sums of blocks\.0, it has those of blocks\.2"):
        run(DriftGate(surrogate="ridge", profile=deep))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"most": 0}, "most=0"),
        ({"group": 0}, "group=0"),
        ({"group": 2}, "per_sample=False"),
        ({"group": 2, "per_sample": False, "surrogate": "ridge", "profile": PROFILE}, "group of 2"),
        ({"surrogate": "spline"}, "residual, affine, ridge"),
        ({"surrogate": "ridge"}, "affine, ridge and calibrated need one"),
        ({"test": "calibrated"}, "affine, ridge and calibrated need one"),
        ({"test": "chi2"}, "threshold, calibrated, adaptive"),
        ({"profile": PROFILE}, "the others use none"),
        ({"ridge": -1.0}, "ridge is -1"),
        ({"rank": 0}, "rank is 0"),
        ({"level": 1.0}, "level=1"),
        ({"quantile": 2.0}, "quantile is 2"),
        ({"freedom": "many"}, "tokens or spectrum"),
        ({"spread": "wide"}, "drift or variance"),
        ({"blocks": Select(kind=("mlp",))}, "single blocks"),
    ],
)
def test_settings_out_of_range_are_refused(settings, match):
    with pytest.raises(PolicyError, match=match):
        DriftGate(**settings)


class Rowwise(Policy):
    """Samples compute at steps of their own."""

    traits = Traits(decides="sample")
    steps: tuple[tuple[int, ...], ...]

    @hookimpl
    def decide(self, step, call):
        return Reuse("rows", mask=[step.index not in own for own in self.steps])


def test_samples_of_a_rule_count_for_themselves():
    rule = ((0, 1, 2, 5, 11), (0, 2, 3, 11))
    given = request(2, STEPS)
    together = run(Rowwise(steps=rule), DriftGate(threshold=0.3), given=given)
    for row in range(2):
        own = Rowwise(steps=rule[row : row + 1])
        alone = run(own, DriftGate(threshold=0.3), given=row_of(given, row))
        assert torch.allclose(together.sample[row], alone.sample[0], atol=1e-4)


def test_a_configuration_makes_it(tmp_path):
    PROFILE.save(tmp_path / "p.safetensors")
    (made,) = build_policies(
        [{"fastcache": {"surrogate": "ridge", "profile": str(tmp_path / "p.safetensors")}}]
    )
    assert torch.equal(run(made).sample, run(FastCache(surrogate="ridge", profile=PROFILE)).sample)
    (gate,) = build_policies(
        [{"drift_gate": {"blocks": {"kind": ["block"], "depth": "1:"}, "threshold": 0.2}}]
    )
    assert repr(gate) == repr(DriftGate(blocks=Select(kind=("block",), depth="1:"), threshold=0.2))


# -------------------------------------------------------------------------------- ranks
class OtherRank(Policy):
    """Stands in for a second rank, which has seen its inputs move as a function says."""

    traits = Traits(collective=True)
    moved: object

    def agree(self, value, where):
        return torch.maximum(value.double(), self.moved(value).double())

    @hookimpl
    def pre_step(self):
        """Nothing."""


@pytest.mark.parametrize("per_sample", [True, False])
def test_ranks_reuse_what_all_of_them_would(per_sample):
    policy = DriftGate(threshold=9.0, per_sample=per_sample)
    still = run(OtherRank(moved=torch.zeros_like), policy)
    assert torch.equal(still.sample, run(policy).sample)
    moving = run(OtherRank(moved=lambda value: torch.full_like(value, 1.1)), policy)
    assert torch.equal(moving.sample, PLAIN.sample)
    lost = run(OtherRank(moved=lambda value: torch.full_like(value, torch.nan)), policy)
    assert torch.equal(lost.sample, PLAIN.sample)


def test_ranks_agree_on_each_sample():
    """Where the other rank needs the second sample alone, the first one is replaced."""
    network, sizes = BlockFlow(depth=DEPTH), []
    network.blocks[0].attn.register_forward_pre_hook(lambda m, args: sizes.append(len(args[0])))
    other = OtherRank(moved=lambda value: torch.tensor([0.0, 2.0]))
    run(other, DriftGate(threshold=9.0, most=99), network=network)
    assert sizes == [2] + [1] * (STEPS - 2) + [2]
