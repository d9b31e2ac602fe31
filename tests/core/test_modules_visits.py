"""What a policy can do in a visit: run samples or tokens, and make outputs of its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from erta_framework.errors import CapabilityError, PolicyError
from erta_framework.modules import Ask, Select, measure
from erta_framework.modules._cells import Learned
from erta_framework.modules._module_call import ModuleCall
from erta_framework.modules._partial import run_rows
from erta_framework.testing import BlockFlow
from module_plans import Plan, request, sample

PLAIN = sample()


def ask(answer, kind="block", keeps=1):
    def make(step, call):
        return dict.fromkeys(call.sites, Ask(answer))

    return Plan(make=make, depth=keeps, selected=(Select(kind=(kind,)),))


def test_samples_that_run_apart_make_the_whole_output():
    """Each sample alone, put together again, is the run of all."""

    def answer(visit):
        if visit.step.index == 0:
            return visit.run()
        rows = visit.run_rows((1,))
        assert [tuple(t.shape) for t in rows] == [(1, *visit.x.shape[1:])]
        return visit.build([torch.cat([visit.x[:1], rows[0]])])

    found = sample(ask(answer))
    # sample 1 ran whole everywhere, sample 0 passed through all blocks
    assert torch.allclose(found.sample[1], PLAIN.sample[1], atol=1e-5)
    assert not torch.allclose(found.sample[0], PLAIN.sample[0], atol=1e-3)
    assert found.trace.steps[1].calls[0].sites == {"block": (3, 0, 0)}
    assert 0.5 <= found.trace.steps[1].calls[0].share < 0.6


def test_tokens_that_run_apart_make_the_whole_output():
    def answer(visit):
        if visit.step.index == 0:
            return visit.run()
        tokens = torch.arange(visit.x.shape[1])
        return visit.run_tokens(tokens[::2], torch.zeros_like(visit.x))

    found = sample(ask(answer, "mlp"))
    everywhere = sample(ask(lambda v: v.run_tokens(torch.arange(v.x.shape[1]), v.x), "mlp"))
    assert torch.allclose(everywhere.sample, PLAIN.sample, atol=1e-5)
    assert not torch.allclose(found.sample, PLAIN.sample, atol=1e-3)
    assert found.trace.work < PLAIN.trace.work


@pytest.mark.parametrize("other", ["run", "run_rows", "run_tokens"])
def test_a_module_runs_once_a_visit(other):
    def answer(visit):
        visit.run()
        again = {"run": (), "run_rows": ((0,),), "run_tokens": (torch.tensor([0]), visit.x)}
        return getattr(visit, other)(*again[other])

    with pytest.raises(PolicyError, match="twice in one visit"):
        sample(ask(answer, "mlp"))


def test_features_of_some_samples_leave_those_of_the_others():
    seen = []

    def answer(visit):
        seen.append([feature[:, 0].tolist() for feature in visit.features])
        mark = torch.full((2, 1), float(visit.step.index))
        if visit.step.index == 0:
            visit.keep(mark)
        elif visit.step.index == 2:
            visit.keep(mark[1:], of=(1,))
        return visit.run()

    first = Plan(
        make=lambda s, c: {c.sites[0]: Ask(answer)},
        selected=(Select(kind=("block",), pick="0"),),
    )
    sample(first, given=request())
    by_step = seen[::2]  # two branches
    assert by_step == [[], [[0.0, 0.0]], [[0.0, 0.0]], [[0.0, 2.0]], [[0.0, 2.0]], [[0.0, 2.0]]]


def test_a_feature_that_the_network_writes_into_is_forgotten():
    class Overwrites(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.attn, self.mlp = block.attn, block.mlp

        def forward(self, hidden_states, gate):
            return hidden_states.add_(gate * self.mlp(hidden_states))

    network, known = BlockFlow(), []
    network.blocks = nn.ModuleList(Overwrites(block) for block in network.blocks)

    def answer(visit):
        known.append([feature.clone() for feature in visit.features])
        entered = visit.x
        visit.keep(entered)
        given = entered.clone()
        output = visit.run()
        known[-1].append(given)
        return output

    first = Plan(
        make=lambda s, c: {c.sites[0]: Ask(answer)},
        selected=(Select(kind=("block",), pick="0"),),
    )
    sample(first, network=network)
    before, after = known[::2], known[2::2]
    assert len(after[0]) == 1  # forgotten, once
    for one, other in zip(before[1:], after[1:], strict=False):
        assert torch.equal(other[0], one[-1])  # copies from then on


def test_values_that_decide_are_read_each_for_itself():
    found = []

    def answer(visit):
        found.append((visit.agree_each(torch.tensor([1.0, 3.0])), visit.agree(torch.ones(2))))
        return visit.run()

    sample(ask(answer))
    assert found[0] == ([1.0, 3.0], 1.0)


class Rotary(nn.Module):
    def forward(self, hidden_states, image_rotary_emb, masks=None):
        return hidden_states * image_rotary_emb[0]


def test_positions_belong_to_every_sample():
    """A tuple of tables over tokens is given whole; what may hold samples is refused."""
    module = Rotary()
    call = ModuleCall("blocks.0", module, Learned(), 2, None)
    x, tables = torch.arange(12.0).reshape(2, 3, 2), (torch.full((3, 2), 2.0),)
    (found,) = run_rows(call, module, (x, tables), {}, (1,), 2)
    assert torch.equal(found, 2 * x[1:])
    with pytest.raises(CapabilityError, match="masks tuple"):
        run_rows(call, module, (x, tables), {"masks": (x,)}, (1,), 2)
    with pytest.raises(CapabilityError, match="image_rotary_emb"):
        run_rows(call, module, (x, (torch.ones(2, 2),)), {}, (1,), 2)


def test_what_policies_compute_in_visits_is_no_cost_of_the_network():
    """Not of the place, nor of a block around it that is asked as well; costs are remembered."""
    network, seen = BlockFlow(), []

    def answer(visit):
        seen.append(visit.call.costs)
        before = visit.x @ visit.x.mT  # the policy's own
        output = visit.run()
        assert before.isfinite().all()
        assert (output @ output.mT).isfinite().all()
        return output

    def both(step, call):
        return dict.fromkeys(call.sites, Ask(answer))

    kinds = (Select(kind=("block",)), Select(kind=("mlp",)))
    sample(Plan(make=both, selected=kinds), network=network)
    given = request()
    time = torch.zeros(len(given.latents))
    expected = measure(network, lambda: network(given.latents, time, given.cond))
    assert seen[0] is None
    assert dict(seen[-1].flops) == dict(expected.flops)
