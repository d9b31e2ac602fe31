"""What places keep, row by row, and how they compose with rules for whole steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from erta_framework import NoGuidance, Policy, Reuse, Traits, hookimpl
from erta_framework.modules import (
    KEEP,
    ReuseKept,
    measure_costs,
)
from erta_framework.testing import AlternateSteps, BlockFlow
from module_plans import STEPS, every, gated, plan, request, sample, visits

PLAIN = sample()


# ------------------------------------------------------------------------------ the cells
class Twice(BlockFlow):
    """Runs one MLP on two streams, as some joint blocks do."""

    def __init__(self):
        super().__init__()
        for block in self.blocks:
            block.forward = _twice(block)


def _twice(block):
    def forward(hidden_states, gate):
        one, two = hidden_states.split([8, 24], dim=1)
        return hidden_states + gate * torch.cat([block.mlp(one), block.mlp(two)], dim=1)

    return forward


def test_a_module_that_is_visited_twice_keeps_both_outputs():
    network = Twice()
    counts = visits(network, "blocks.0.mlp.up")
    kept = sample(plan(lambda _, c: dict.fromkeys(c.sites, KEEP), "mlp"), network=network)
    assert torch.equal(kept.sample, sample(network=Twice()).sample)
    counts["blocks.0.mlp.up"] = 0
    found = sample(plan(every(2), "mlp"), network=network)
    assert counts["blocks.0.mlp.up"] == 2 * 2 * len(range(0, STEPS, 2))
    assert found.sample.isfinite().all()


class Writing(BlockFlow):
    """Writes into the outputs of its attentions."""

    def __init__(self):
        super().__init__()
        for block in self.blocks:
            block.forward = _writing(block)


def _writing(block):
    def forward(hidden_states, gate):
        return hidden_states + block.attn(hidden_states).mul_(gate)

    return forward


def test_outputs_that_the_network_writes_into_are_copied():
    network = Writing()
    outputs, kept = [], []

    def make(step, call):
        kept.append([e.tensors["output.0.0"].clone() for e in call.kept(call.sites[0])])
        return every(3)(step, call)

    network.blocks[0].attn.register_forward_hook(lambda _, __, out: outputs.append(out.clone()))
    found = sample(plan(make, "attention"), network=network, guidance=NoGuidance())
    # the first output is written into before anybody knows: it is forgotten
    assert kept[0] == []
    assert kept[1] == []
    for step in range(2, STEPS):
        assert torch.equal(kept[step][0], outputs[1 if step < 5 else 4])
    assert found.sample.isfinite().all()


def test_branches_keep_apart_and_requests_forget():
    sizes = []

    def make(step, call):
        sizes.append((step.index, call.branch, call.age(call.sites[0])))
        return every(2)(step, call)

    policy = plan(make, "attention")
    network = BlockFlow()
    first = sample(policy, network=network)
    second = sample(policy, network=network)
    assert torch.equal(first.sample, second.sample)
    assert [age for step, _, age in sizes if step == 0] == [None] * 4


def test_kept_outputs_are_counted_in_bytes():
    found = sample(plan(every(2), "mlp", keeps=2))
    output = 2 * 32 * 8 * 4
    assert found.trace.module_bytes == 2 * 3 * 2 * output
    assert f"{found.trace.module_bytes / 1e6:.2f} MB kept of modules" in found.trace.summary()


def test_another_batch_forgets_what_was_kept():
    ages = []

    def make(step, call):
        ages.append(call.age(call.sites[0]))
        return dict.fromkeys(call.sites, KEEP)

    policy = plan(make, "mlp")
    for batch in (2, 3):
        sample(policy, batch=batch, guidance=NoGuidance())
    assert ages == [None, 1, 1, 1, 1, 1] * 2


def test_state_belongs_to_a_policy_and_a_branch():
    totals = {}

    def make(step, call):
        held = call.state_of(policy, list)
        held.append(step.index)
        totals[call.branch] = list(held)
        return {}

    policy = plan(make, "mlp")
    sample(policy)
    assert totals == {"cond": list(range(STEPS)), "uncond": list(range(STEPS))}


# ---------------------------------------------------------------------------- composition
def test_ages_count_steps_also_those_that_a_step_rule_leaves_out():
    ages = []

    def make(step, call):
        ages.append((step.index, call.age(call.sites[0])))
        return every(3)(step, call)

    found = sample(AlternateSteps(), plan(make, "attention"), guidance=NoGuidance())
    # steps 1 and 3 are left out; 0 keeps, 2 is 2 old, 4 is 4 old and keeps, 5 is 1 old
    assert ages == [(0, None), (2, 2), (4, 4), (5, 1)]
    assert found.trace.network_calls == 4
    assert [step.computed for step in found.trace.steps] == [True, False, True, False, True, True]


class Masked(Policy):
    """Sample k computes at the steps listed for it."""

    traits = Traits(decides="sample")
    steps: tuple[tuple[int, ...], ...] = ()

    @hookimpl
    def decide(self, step, call):
        return Reuse("listed", mask=[step.index not in own for own in self.steps])


SCHEDULES = ((0, 2, 5), (0, 1, 2, 3, 5), (0, 4))


@pytest.mark.parametrize("n", [2, 3, 9])
def test_rows_of_a_batch_are_what_single_samples_are(n):
    whole = request(batch=3)
    masked = sample(Masked(steps=SCHEDULES), plan(row_ages(n), "attention"), given=whole)
    for row, own in enumerate(SCHEDULES):
        one = replace(
            whole,
            latents=whole.latents[row : row + 1],
            cond=whole.cond[row : row + 1],
            uncond=whole.uncond[row : row + 1],
        )
        alone = sample(Masked(steps=(own,)), plan(row_ages(n), "attention"), given=one)
        torch.testing.assert_close(masked.sample[row : row + 1], alone.sample, rtol=1e-4, atol=1e-4)


def row_ages(n):
    """Keeps at even steps and reuses at odd ones, so that rows agree on what to do."""

    def make(step, call):
        fresh = step.index % n == 0 or any(call.age(place) is None for place in call.sites)
        return dict.fromkeys(call.sites, KEEP if fresh else ReuseKept())

    return make


def test_the_oldest_row_decides():
    ages = []

    def make(step, call):
        ages.append((step.index, call.rows, call.age(call.sites[0])))
        return dict.fromkeys(call.sites, KEEP)

    steps = ((0, 1, 2, 5), (0, 2, 3, 5))
    policies = (Masked(steps=steps), plan(make, "mlp"))
    sample(*policies, guidance=NoGuidance())
    assert ages == [
        (0, None, None),
        (1, (0,), 1),
        (2, None, 2),
        (3, (1,), 1),
        (5, None, 3),
    ]


class Trying(Policy):
    """Runs a trial at every step before the network."""

    traits = Traits(requires=frozenset({"trial"}))

    @hookimpl
    def decide(self, step, call):
        call.trial(call.x * 1.1)


def test_trials_run_whole_and_touch_no_cell():
    network = BlockFlow()
    counts = visits(network, "blocks.0.attn.qkv")
    tried = sample(Trying(), plan(every(2), "attention"), network=network)
    trials = tried.trace.trial_calls
    assert trials > 0
    assert counts["blocks.0.attn.qkv"] == 2 * len(range(0, STEPS, 2)) + trials
    assert torch.equal(tried.sample, sample(plan(every(2), "attention")).sample)


def test_the_work_is_the_sum_of_the_shares_of_flops():
    network, x = BlockFlow(), torch.randn(2, 3, 2, 4, 4)
    costs = measure_costs(network, lambda: network(x, torch.full((2,), 1.0), torch.zeros(2, 3)))
    trace = sample(plan(every(2), "attention")).trace
    share = 1.0 - sum(costs[f"blocks.{k}.attn"] for k in range(3))
    calls = [step.calls[0] for step in trace.steps]
    assert [call.share for call in calls] == pytest.approx([1.0, share] * 3)
    assert trace.work == pytest.approx(2 * 2 * 3 * (1.0 + share))
    expected = f"12 network calls, the work of {6 * (1.0 + share):.1f}"
    assert expected in trace.summary()


def test_what_cannot_be_counted_is_a_whole_call():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([Block(), Block()])

        def forward(self, x, times, condition):
            for block in self.blocks:
                x = block(x)
            return x

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = Attention(1, 1)

        def forward(self, x):
            return x + 0.1 * self.attn(x)

    class Attention(nn.Linear):
        def forward(self, x):
            return x.cos()

    trace = sample(plan(every(2), "attention"), network=Plain()).trace
    assert trace.work == trace.network_samples == 2 * 2 * STEPS
    assert "the work of" not in trace.summary()


def test_no_policy_of_modules_no_gates():
    network = BlockFlow()
    seen = []
    network.head.register_forward_pre_hook(lambda *_: seen.append(gated(network)))
    found = sample(AlternateSteps(), network=network)
    assert seen
    assert not any(seen)
    assert found.trace.steps[0].calls[0].sites == {}


class Folded(BlockFlow):
    """Its attentions see every half of the tokens as a sample of its own."""

    def __init__(self):
        super().__init__()
        for block in self.blocks:
            block.forward = _folded(block)


def _folded(block):
    def forward(hidden_states, gate):
        batch = hidden_states.shape[0]
        halves = hidden_states.reshape(2 * batch, -1, hidden_states.shape[-1])
        return hidden_states + gate * block.attn(halves).reshape(hidden_states.shape)

    return forward


def test_a_batch_stays_whole_where_kept_outputs_have_no_row_for_each_sample():
    rows = []

    def make(step, call):
        rows.append(call.rows)
        return every(2)(step, call)

    rule = Masked(steps=((0, 1, 4), (0, 3, 4)))
    found = sample(rule, plan(make, "attention"), network=Folded(), guidance=NoGuidance())
    assert set(rows) == {None}
    reasons = [step.calls[0].reason for step in found.trace.steps]
    expected = "blocks.0.attn keeps an output that has no row for each sample"
    assert [expected in why for why in reasons] == [False, True, False, True, False, False]
