"""TokenSplit against its steps written out plainly, and beside the gate of blocks."""

from __future__ import annotations

import pytest
import torch

from erta_framework import NoGuidance
from erta_framework.errors import PolicyError
from erta_framework.modules import Select
from erta_framework.testing import BlockFlow
from erta_policies.fastcache import DriftGate, FastCache, TokenSplit
from module_plans import request, sample

STEPS, DEPTH = 10, 3


def run(*policies, network=None, batch=1):
    network = BlockFlow(depth=DEPTH) if network is None else network
    return sample(*policies, network=network, given=request(batch, STEPS), guidance=NoGuidance())


def count_tokens(network):
    """How many tokens each MLP was given, by step."""
    found = [[] for _ in network.blocks]
    for k, block in enumerate(network.blocks):
        block.mlp.up.register_forward_pre_hook(lambda m, a, k=k: found[k].append(a[0].shape[1]))
    return found


class Plain(BlockFlow):
    """The split written out for one sample."""

    def __init__(self, motion, full, most):
        super().__init__(depth=DEPTH)
        self.motion, self.full, self.most, self.index = motion, full, most, 0
        for k, block in enumerate(self.blocks):
            block.mlp.forward = self.split(k, block.mlp.forward)
        self.held, self.ran = {}, [[] for _ in self.blocks]

    def split(self, k, mlp):
        def forward(x):
            entered, out, at = self.held.get(k, (x, None, -99))
            moved = (x - entered).norm(dim=2).square()
            moving = (moved > self.motion * moved.max()).nonzero()[:, 1]
            last = self.index == STEPS - 1
            old = out is None or self.index - at > self.most
            if last or old or len(moving) > self.full * x.shape[1]:
                self.held[k] = (x, mlp(x), self.index)
                self.ran[k].append(x.shape[1])
                return self.held[k][1]
            entered, out = entered.clone(), out.clone()
            if len(moving):
                entered[:, moving], out[:, moving] = x[:, moving], mlp(x[:, moving])
                self.ran[k].append(len(moving))
            self.held[k] = (entered, out, at)
            return out

        return forward

    def _predict(self, x, sigma, shift):
        found = super()._predict(x, sigma, shift)
        self.index += 1
        return found


@pytest.mark.parametrize(("motion", "full"), [(0.1, 0.5), (0.1, 1.0), (0.5, 0.5), (0.9, 1.0)])
@pytest.mark.parametrize("most", [1, 4])
def test_it_is_the_algorithm(motion, full, most):
    plain, network = Plain(motion, full, most), BlockFlow(depth=DEPTH)
    expected, tokens = run(network=plain), count_tokens(network)
    found = run(TokenSplit(motion=motion, full=full, most=most), network=network)
    assert torch.allclose(found.sample, expected.sample, atol=1e-5)
    assert tokens == plain.ran
    if full == 1.0:
        assert any(0 < n < 32 for one in tokens for n in one)


def test_the_work_is_that_of_the_tokens():
    whole, part = run(), run(TokenSplit(motion=0.9, full=1.0))
    assert part.trace.work < whole.trace.work
    assert part.trace.steps[1].calls[0].share < 1.0


def test_all_tokens_in_motion_change_no_bit():
    assert torch.equal(run(TokenSplit(full=0.0)).sample, run().sample)


def test_a_standing_input_runs_no_mlp():
    class Still(BlockFlow):
        def _predict(self, x, sigma, shift):
            hidden = torch.ones(x.shape[0], 4, 8)
            for block in self.blocks:
                hidden = block(hidden, torch.ones(1, 1, 1))
            return x - shift

    network = Still(depth=DEPTH)
    tokens = count_tokens(network)
    run(TokenSplit(most=3), network=network)
    assert tokens == [[4] * 4] * DEPTH  # steps 0, 4, 8 and the last


def test_as_many_tokens_run_in_each_sample_as_in_the_one_where_most_move():
    network = BlockFlow(depth=DEPTH)
    tokens = count_tokens(network)
    together = run(TokenSplit(motion=0.5, full=1.0), network=network, batch=2)
    assert together.sample.isfinite().all()
    assert all(0 < n <= 32 for one in tokens for n in one)


def test_blocks_and_tokens_together():
    found = run(FastCache(threshold=0.2, per_sample=False, motion=0.5), batch=2)
    blocks = run(FastCache(threshold=0.2, per_sample=False), batch=2)
    assert found.sample.isfinite().all()
    assert found.trace.work < blocks.trace.work < run(batch=2).trace.work


def test_a_split_of_tokens_needs_one_decision_for_the_batch():
    with pytest.raises(PolicyError, match=r"motion=0\.1 and per_sample=True"):
        FastCache(motion=0.1)
    with pytest.raises(PolicyError, match=r"motion=0\.1 and per_sample=True"):
        FastCache(motion=0.1, gate=DriftGate())
    assert FastCache(motion=0.1, gate=DriftGate(per_sample=False)).parts()[1].motion == 0.1


def test_a_gate_brings_its_own_settings():
    with pytest.raises(PolicyError, match="has its own threshold"):
        FastCache(threshold=0.1, gate=DriftGate())
    gate = DriftGate(threshold=0.3, most=5)
    assert FastCache(gate=gate).parts() == (gate,)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"motion": 1.0}, "motion=1"),
        ({"full": 1.5}, "full=1.5"),
        ({"most": 0}, "most=0"),
        ({"mlps": Select(kind=("block",))}, "runs MLPs in part"),
    ],
)
def test_settings_out_of_range_are_refused(settings, match):
    with pytest.raises(PolicyError, match=match):
        TokenSplit(**settings)
