"""`Tokens`: some tokens of a module run, and the others stay as they are kept."""

from __future__ import annotations

import pytest
import torch

from erta_framework import NoGuidance, Policy, Reuse, Traits, hookimpl
from erta_framework.errors import CapabilityError, PolicyError
from erta_framework.modules import KEEP, ReuseKept, Select, Tokens
from erta_framework.testing import BlockFlow
from module_plans import Plan, sample


def make_linear(inputs, outputs, draw):
    layer = torch.nn.Linear(inputs, outputs, bias=False)
    layer.weight.data = torch.randn(outputs, inputs, generator=draw) / inputs**0.5
    return layer


class FusedBlock(torch.nn.Module):
    """A block of FLUX' single kind: one projection of attention and MLP, behind a gate."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(5)
        self.attn = BlockFlow().blocks[0].attn
        # inside of another module, where a hook sees what really runs
        self.proj_mlp = torch.nn.Sequential(make_linear(8, 16, draw))
        self.proj_out = torch.nn.Sequential(make_linear(24, 8, draw))

    def forward(self, hidden_states, gate):
        normed = torch.nn.functional.layer_norm(hidden_states, hidden_states.shape[-1:])
        inner = torch.nn.functional.gelu(self.proj_mlp(normed))
        return hidden_states + gate * self.proj_out(torch.cat([self.attn(normed), inner], dim=2))


def make_fused():
    network = BlockFlow(depth=2)
    network.blocks[1] = FusedBlock()
    return network.requires_grad_(False)


def test_tokens_of_a_fused_place_run_through_all_of_its_projections():
    """With the attention reused, so many tokens of the output are those of the whole block."""
    network, sizes = make_fused(), []
    chosen, found = torch.tensor([1, 6, 30]), []
    for part in (network.blocks[1].proj_mlp, network.blocks[1].proj_out):
        part[0].register_forward_pre_hook(lambda _, g: sizes.append(g[0].shape[1]))
    network.blocks[1].register_forward_hook(lambda *a: found.append(a[2]))

    def make(tokens):
        def assign(step, call):
            plan = {}
            for place in call.sites:
                fused = place.kind == "mlp"
                if call.age(place) is None:
                    plan[place] = KEEP
                elif step.index == 1:
                    plan[place] = (Tokens(chosen) if tokens else None) if fused else ReuseKept()
            return {place: action for place, action in plan.items() if action is not None}

        return Plan(make=assign, selected=(Select(kind=("attention", "mlp"), depth="1"),))

    sample(make(tokens=True), network=network, guidance=NoGuidance())
    assert sizes[2:4] == [3, 3]
    in_part, sizes[:] = list(found), []
    found.clear()
    sample(make(tokens=False), network=network, guidance=NoGuidance())
    assert sizes[2:4] == [32, 32]
    # the block adds the kept output of the others to what comes in, with the gate of this step
    assert torch.equal(in_part[0], found[0])
    torch.testing.assert_close(in_part[1][:, chosen], found[1][:, chosen], rtol=1e-5, atol=1e-6)
    others = [k for k in range(32) if k not in chosen.tolist()]
    assert in_part[1].isfinite().all()
    assert not torch.allclose(in_part[1][:, others], found[1][:, others])


def test_tokens_of_a_fused_place_need_its_attention_reused():
    def make(step, call):
        return {
            p: KEEP if step.index == 0 else Tokens(torch.tensor([0]))
            for p in call.sites
            if p.kind == "mlp"
        }

    policy = Plan(make=make, selected=(Select(kind=("attention", "mlp"), depth="1"),))
    with pytest.raises(PolicyError, match=r"blocks.1.attn before it mixes tokens; select that too"):
        sample(policy, network=make_fused())


def test_tokens_that_ran_last_until_the_place_runs_as_a_whole():
    """KEEP, Tokens, reuse, Tokens of others, reuse: each output is the newest of each token."""
    network, outputs, kept = BlockFlow(), [], []
    network.blocks[1].mlp.down.register_forward_hook(lambda *a: outputs.append(a[2].clone()))
    first, second = torch.tensor([0, 5]), torch.tensor([[5, 9]])
    actions = [KEEP, Tokens(first), ReuseKept(), Tokens(second), ReuseKept(), KEEP]

    def make(step, call):
        (place,) = call.sites
        if step.index:
            kept.append((call.kept(place)[0].example.clone(), call.age(place)))
        return {place: actions[step.index]}

    policy = Plan(make=make, selected=(Select(kind=("mlp",), depth="1"),))
    sample(policy, network=network, guidance=NoGuidance())
    whole, one, other, _ = outputs
    wanted = whole.clone()
    assert torch.equal(kept[0][0], wanted)
    wanted[:, first] = one
    assert torch.equal(kept[1][0], wanted)
    assert torch.equal(kept[2][0], wanted)
    wanted[:, second[0]] = other
    assert torch.equal(kept[3][0], wanted)
    assert torch.equal(kept[4][0], wanted)
    assert [age for _, age in kept] == [1, 2, 3, 4, 5]  # since the whole run


class OnlyAt(Policy):
    """At one step only some samples run."""

    index: int
    rows: tuple[int, ...]
    traits = Traits(decides="sample")

    @hookimpl
    def decide(self, step, call):
        alone = step.index == self.index
        return Reuse("rows", mask=[alone and row not in self.rows for row in range(3)])


@pytest.mark.parametrize("rows", [(1,), (2, 0)])
def test_tokens_of_some_samples_leave_what_is_kept_of_the_others(rows):
    network, outputs, kept = BlockFlow(), [], []
    network.blocks[1].mlp.down.register_forward_hook(lambda *a: outputs.append(a[2].clone()))
    chosen = torch.tensor([3, 8])
    actions = [KEEP, Tokens(chosen), ReuseKept(), ReuseKept(), ReuseKept(), KEEP]

    def make(step, call):
        (place,) = call.sites
        if step.index:
            kept.append((call.kept(place)[0].example.clone(), call.age(place)))
        return {place: actions[step.index]}

    tokens = Plan(make=make, selected=(Select(kind=("mlp",), depth="1"),))
    sample(OnlyAt(index=1, rows=rows), tokens, network=network, guidance=NoGuidance(), batch=3)
    wanted, some, _ = outputs
    ran = sorted(rows)
    assert torch.equal(kept[0][0], wanted[ran])
    wanted[torch.tensor(ran)[:, None], chosen] = some
    assert torch.equal(kept[1][0], wanted)
    assert [age for _, age in kept] == [1, 2, 3, 4, 5]


class Reader(torch.nn.Module):
    """A cross-attention: tokens ask, and a fixed sequence answers."""

    def __init__(self, masked):
        super().__init__()
        self.to_q, self.to_k = (make_linear(8, 8, torch.Generator().manual_seed(k)) for k in (1, 2))
        self.is_cross_attention, self.masked = True, masked
        self.asked = []

    def forward(self, hidden_states, encoder_hidden_states, attention_mask=None):
        self.asked.append((hidden_states.shape[1], encoder_hidden_states.shape[1]))
        scores = self.to_q(hidden_states) @ self.to_k(encoder_hidden_states).transpose(1, 2)
        return scores.softmax(-1) @ encoder_hidden_states


class ReadingBlock(torch.nn.Module):
    def __init__(self, masked=False):
        super().__init__()
        self.attn2 = Reader(masked)

    def forward(self, hidden_states, gate):
        words = torch.ones(hidden_states.shape[0], 5, 8).cumsum(1)
        tokens = hidden_states.shape[1]
        mask = torch.zeros(1, tokens, 5) if self.attn2.masked else None
        return hidden_states + gate * self.attn2(hidden_states, words, attention_mask=mask)


@pytest.mark.parametrize("masked", [False, True])
def test_tokens_are_the_queries_of_a_cross_attention(masked):
    network = BlockFlow(depth=2)
    network.blocks[1] = ReadingBlock(masked)
    network.requires_grad_(False)

    def make(step, call):
        return {p: KEEP if step.index == 0 else Tokens(torch.tensor([3, 4])) for p in call.sites}

    policy = Plan(make=make, selected=(Select(kind=("cross",), depth="1"),))
    if masked:
        with pytest.raises(CapabilityError, match=r"attn2 .Reader. cannot run on some tokens"):
            sample(policy, network=network)
    else:
        assert sample(policy, network=network).sample.isfinite().all()
        assert set(network.blocks[1].attn2.asked) == {(32, 5), (2, 5)}


def test_places_of_other_samples_are_refused():
    def make(step, call):
        wrong = torch.zeros(3, 2, dtype=torch.long)
        return {p: KEEP if step.index == 0 else Tokens(wrong) for p in call.sites}

    policy = Plan(make=make, selected=(Select(kind=("mlp",), depth="1"),))
    with pytest.raises(PolicyError, match=r"places \(3, 2\) at blocks.1.mlp, where 2 samples run"):
        sample(policy)
