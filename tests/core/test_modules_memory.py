"""What places keep is known from the first network call, and bounded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from erta_framework import CFG, Engine, FlowEuler, Sampler, SamplingLoop
from erta_framework.errors import CapabilityError, InputError
from erta_framework.modules import parse_bytes
from erta_framework.testing import BlockFlow
from module_plans import STEPS, every, plan, request, visits

BRANCHES = 2


def loop(*policies, memory=None):
    return SamplingLoop(Engine(policies), FlowEuler(), CFG(scale=2.0), memory)


@pytest.mark.parametrize("keeps", [1, 3])
@pytest.mark.parametrize("kinds", [("attention",), ("attention", "mlp"), ("block",)])
def test_what_is_said_beforehand_is_what_is_held_in_the_end(kinds, keeps):
    trace = loop(plan(every(1), *kinds, keeps=keeps)).run(BlockFlow(), request()).trace
    assert trace.state_bytes == trace.module_bytes > 0


def test_the_first_network_call_says_so():
    seen = []
    found = loop(plan(every(2), "attention", keeps=2))
    done = found.run(BlockFlow(), request(), observe=lambda _: seen.append(1))
    assert len(seen) == STEPS
    assert done.trace.state_bytes > done.trace.module_bytes / 2
    assert f'"state_bytes": {done.trace.state_bytes}' in done.trace.to_json()


def test_too_much_is_refused_in_the_first_call_with_the_number_that_is_needed():
    policy = plan(every(2), "attention", "mlp")
    needed = loop(policy).run(BlockFlow(), request()).trace.state_bytes
    network = BlockFlow()
    made = visits(network, "blocks.0.attn")
    with pytest.raises(CapabilityError, match=r"Plan.* would keep .* and memory is") as raised:
        loop(policy, memory=needed - 1).run(network, request())
    assert made == {"blocks.0.attn": 1}
    assert not any({"forward", "_erta_gate"} & set(vars(m)) for m in network.modules())
    enough = str(raised.value).partition("memory=")[2].partition(",")[0]
    assert needed <= parse_bytes(enough) <= needed * 1.02
    for bound in (enough, needed):
        assert loop(policy, memory=bound).run(BlockFlow(), request()).trace.network_calls


def test_two_policies_are_bounded_together():
    one, two = plan(every(2), "attention"), plan(every(2), "mlp")
    apart = [loop(each).run(BlockFlow(), request()).trace.state_bytes for each in (one, two)]
    assert loop(one, two).run(BlockFlow(), request()).trace.state_bytes == sum(apart)
    with pytest.raises(CapabilityError, match="would keep"):
        loop(one, two, memory=max(apart)).run(BlockFlow(), request())


def test_what_cannot_be_measured_beforehand_is_bounded_as_it_grows():
    class Attention(nn.Linear):
        def forward(self, x):
            return x.cos()

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = Attention(1, 1)

        def forward(self, x):
            return x + 0.1 * self.attn(x)

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([Block(), Block()])

        def forward(self, x, times, condition):
            for block in self.blocks:
                x = block(x)
            return x

    size = 2 * request().latents.numel() * 4  # two places
    found = loop(plan(every(2), "attention"), memory=BRANCHES * size)
    assert found.run(Plain(), request()).trace.module_bytes == BRANCHES * size
    with pytest.raises(CapabilityError, match="would keep"):
        loop(plan(every(2), "attention"), memory=BRANCHES * size - 1).run(Plain(), request())


def test_a_bound_that_is_no_size_is_refused_at_once():
    with pytest.raises(InputError, match="memory is '2 gigs'"):
        Sampler([plan(every(2), "attention")], memory="2 gigs")


def test_a_bound_with_nothing_to_keep_changes_nothing():
    network = BlockFlow()
    with torch.no_grad():
        plain = loop().run(network, request())
    bounded = loop(memory="1MB").run(network, request())
    assert torch.equal(plain.sample, bounded.sample)
    assert bounded.trace.state_bytes == 0
