"""Gates, ownership, rows, trials and composition of places inside a network."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace

import pytest
import torch
from torch import nn

from erta_framework import Engine, NoGuidance, Policy, Reuse, Sampler, Seam, Traits, hookimpl
from erta_framework.errors import (
    CapabilityError,
    ConflictError,
    PolicyError,
    ProtocolError,
)
from erta_framework.modules import (
    KEEP,
    BlockFinder,
    Cut,
    ModuleSeam,
    ReuseKept,
    Select,
    measure_costs,
)
from erta_framework.testing import AffineFlow, AlternateSteps, BlockFlow
from module_plans import STEPS, Plan, every, gated, plan, request, sample, visits

PLAIN = sample()


# ----------------------------------------------------------------------------- selections
@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (":", [0, 1, 2, 3]),
        ("1:", [1, 2, 3]),
        ("-2:", [2, 3]),
        (":-1", [0, 1, 2]),
        ("0.75:", [3]),
        (":0.5", [0, 1]),
        ("2", [2]),
        ("-1", [3]),
        ("9", []),
    ],
)
def test_depths_are_slices_and_fractions(depth, expected):
    assert list(Select(kind=("block",), depth=depth).depths(4)) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": ("attn",)}, "'attn' is no kind to select"),
        ({"kind": ()}, "Select has no kind"),
        ({"kind": ("block",), "depth": "a:"}, "depth is 'a:'"),
        ({"kind": ("block",), "depth": ""}, "depth is empty"),
        ({"kind": ("block",), "stack": "("}, "is no regular expression"),
        ({"kind": ("mlp",), "span": True}, "a span is made of blocks"),
    ],
)
def test_a_selection_that_means_nothing_is_refused(fields, message):
    with pytest.raises(PolicyError, match=message):
        Select(**fields)


def test_a_cut_has_a_branch():
    with pytest.raises(PolicyError, match="branch of Cut is -1"):
        Cut(branch=-1)


def test_no_match_lists_what_there_is():
    message = r"cannot have Select.*nothing matches; there are 3 block in blocks, 3 attention"
    with pytest.raises(CapabilityError, match=message):
        sample(plan(every(2), "cross"))


def test_a_network_that_is_no_module_is_refused():
    with pytest.raises(CapabilityError, match=r"AffineFlow, no torch\.nn\.Module"):
        Sampler([plan(every(2), "mlp")]).sample(AffineFlow(), ["a"])


def test_a_driver_without_modules_is_refused(info):
    with pytest.raises(CapabilityError, match="requires modules, which"):
        Engine([plan(every(2), "mlp")]).session(info())


# ------------------------------------------------------------------------------ ownership
def test_two_owners_of_a_place_are_refused_by_name():
    one, other = plan(every(2), "attention"), plan(every(3), "attention", depth="1:")
    network = BlockFlow()
    message = r"blocks\.1\.attn of model has two owners: Plan.*and Plan"
    with pytest.raises(ConflictError, match=message):
        sample(one, other, network=network)
    assert gated(network) == []


def test_spans_may_not_overlap_each_other_nor_their_blocks():
    span = plan(every(2), "block", span=True, depth=":2")
    for other in (plan(every(2), "block", depth="0"), plan(every(2), "block", span=True)):
        with pytest.raises(ConflictError, match="has two owners"):
            sample(span, other)


def test_places_within_a_reused_span_only_age():
    ages = []

    def inner(step, call):
        found = [call.age(place) for place in call.sites]
        ages.append(found)
        return {
            p: KEEP if a is None else ReuseKept() for p, a in zip(call.sites, found, strict=True)
        }

    span = plan(every(3), "block", span=True)
    found = sample(span, plan(inner, "attention"), guidance=NoGuidance())
    assert ages == [[None] * 3, *([k] * 3 for k in range(1, STEPS))]
    steps = [step.calls[0].sites for step in found.trace.steps]
    assert steps[0] == {"span": (1, 0, 0), "attention": (3, 0, 0)}
    assert steps[1] == {"span": (0, 1, 0), "attention": (0, 0, 3)}
    assert steps[3] == {"span": (1, 0, 0), "attention": (0, 3, 0)}


class Faulty(Plan):
    """A plan with traits of its own."""

    own: Traits = Traits(seams=frozenset({Seam.MODULE}))

    @property
    def traits(self):
        return self.own


def test_what_a_policy_selects_must_fit_what_it_declares():
    with pytest.raises(PolicyError, match=r"its selects is empty"):
        Engine([Plan(make=every(2), selected=())])
    with pytest.raises(PolicyError, match=r"selects 'mlp'; give Select"):
        Engine([Plan(make=every(2), selected=("mlp",))])
    with pytest.raises(PolicyError, match=r"traits name no Seam\.MODULE"):
        Engine([Faulty(make=every(2), own=Traits())])
    with pytest.raises(PolicyError, match=r"keeps 0 outputs"):
        Engine([Plan(make=every(2), depth=0)])

    class Silent(Policy):
        traits = Traits(seams=frozenset({Seam.MODULE}))

        @property
        def selects(self):
            return (Select(kind=("mlp",)),)

        @hookimpl
        def pre_step(self):
            """Nothing."""

    with pytest.raises(PolicyError, match="has no assign with @hookimpl"):
        Engine([Silent()])


def test_places_that_are_never_assigned_are_reported():
    found = sample(plan(lambda _, call: {call.sites[0]: KEEP}, "mlp"))
    (paths,) = found.trace.unassigned.values()
    assert paths == ("blocks.1.mlp", "blocks.2.mlp")
    assert "owns 2 places that it never assigned an action: blocks.1.mlp" in found.trace.summary()


# ---------------------------------------------------------------------------------- gates
def make_seam(network, policy):
    owners = Engine([policy]).own_places("model", network, BlockFinder())
    return ModuleSeam({"model": network}, {"model": owners})


def test_gates_at_rest_change_nothing_and_leave_nothing():
    network = BlockFlow()
    given = torch.randn(2, 3, 2, 4, 4), torch.full((2,), 400.0), torch.zeros(2, 3)
    plain = network(*given)
    with make_seam(network, plan(every(2), "attention", "mlp")):
        assert len(gated(network)) == 6
        assert torch.equal(network(*given), plain)
    assert gated(network) == []


def test_a_failed_install_takes_every_gate_off():
    network = BlockFlow()
    with make_seam(network, plan(every(2), "mlp", depth="2")):
        second = make_seam(network, plan(every(2), "attention", "mlp"))
        with pytest.raises(ConflictError, match=r"blocks\.2\.mlp of model .* is gated already"):
            second.install()
        assert gated(network) == ["blocks.2.mlp"]
    assert gated(network) == []


def test_modules_of_a_compiled_block_are_refused_and_the_block_is_not():
    network = BlockFlow()
    network.blocks[1]._compiled_call_impl = network.blocks[1].forward  # as compile() sets it
    with pytest.raises(CapabilityError, match=r"blocks\.1\.mlp lies inside blocks\.1"):
        make_seam(network, plan(every(2), "mlp")).install()
    assert gated(network) == ["blocks.1"]
    found = sample(plan(every(2), "block"), network=network)
    assert torch.equal(found.sample, sample(plan(every(2), "block")).sample)
    assert network.blocks[1]._compiled_call_impl == network.blocks[1].forward


def test_hooks_that_were_there_stay_beneath():
    network, calls = BlockFlow(), []
    mlp = network.blocks[0].mlp
    real = mlp.forward

    def offload(*args, **kwargs):
        calls.append(1)
        return real(*args, **kwargs)

    mlp.forward = offload
    sample(plan(every(2), "mlp"), network=network)
    assert vars(mlp)["forward"] is offload
    assert len(calls) == 2 * len(range(0, STEPS, 2))


def test_an_intruder_is_refused_by_name_and_everything_else_comes_off():
    network = BlockFlow()
    mlp = network.blocks[0].mlp
    seam = make_seam(network, plan(every(2), "mlp"))
    seam.install()
    ours = mlp.forward
    mlp.forward = lambda *args: ours(*args)
    with pytest.raises(ProtocolError, match=r"blocks\.0\.mlp\.forward of model .* was replaced by"):
        seam.remove()
    assert gated(network) == ["blocks.0.mlp"]
    assert mlp(torch.zeros(1, 4, 8)).shape == (1, 4, 8)


def test_an_intruder_in_the_middle_of_a_request_is_noticed_at_the_next_call():
    network = BlockFlow()

    def make(step, call):
        if step.index == 1:
            inner = network.blocks[2].mlp.forward
            network.blocks[2].mlp.forward = lambda *args: inner(*args)
        return {}

    with pytest.raises(ProtocolError, match=r"put hooks on first, and remove them last"):
        sample(plan(make, "mlp"), network=network)


def test_an_exception_leaves_nothing(recwarn):
    network = BlockFlow()

    class Boom(Exception):
        pass

    def explode(*_):
        if len(seen) > 4:
            raise Boom
        seen.append(1)

    seen: list[int] = []
    handle = network.blocks[2].mlp.register_forward_pre_hook(explode)
    policy = plan(every(2), "attention")
    with pytest.raises(Boom):
        sample(policy, network=network)
    handle.remove()
    assert gated(network) == []
    again, fresh = sample(policy, network=network), sample(plan(every(2), "attention"))
    assert torch.equal(again.sample, fresh.sample)


def test_a_copied_network_is_driven_by_nobody():
    network = BlockFlow()
    copies = []

    def make(step, call):
        if step.index == 3:
            copies.append(copy.deepcopy(network))
        return every(2)(step, call)

    sample(plan(make, "mlp"), network=network)
    given = torch.randn(2, 3, 2, 4, 4), torch.full((2,), 400.0), torch.zeros(2, 3)
    assert torch.equal(copies[0](*given), network(*given))
    first = copies[0].blocks[0].mlp
    assert vars(first)["_erta_gate"].run.__self__ is first


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
            self.attn = Attention()

        def forward(self, x):
            return x + 0.1 * self.attn(x)

    class Attention(nn.Module):
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


def test_another_thread_runs_the_modules_and_touches_no_cell():
    network = BlockFlow()
    given = torch.randn(2, 3, 2, 4, 4), torch.full((2,), 400.0), torch.zeros(2, 3)
    plain, beside = network(*given), []

    def make(step, call):
        return every(2)(step, call)

    def elsewhere(*_):
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=lambda: beside.append(network(*given)))
            thread.start()
            thread.join()

    handle = network.head.register_forward_pre_hook(elsewhere)
    found = sample(plan(make, "attention"), network=network)
    handle.remove()
    assert len(beside) == 2 * STEPS
    assert all(torch.equal(output, plain) for output in beside)
    assert torch.equal(found.sample, sample(plan(every(2), "attention")).sample)


def test_ranks_that_agree_on_steps_take_static_plans_only():
    class Agreeing(Policy):
        traits = Traits(collective=True)

        @hookimpl
        def pre_step(self):
            """Nothing."""

    dynamic = plan(every(2), "mlp")
    with pytest.raises(ConflictError, match="decides inside the network while sampling"):
        Engine([Agreeing(), dynamic])
    static = Faulty(make=every(2), own=Traits(static=True, seams=frozenset({Seam.MODULE})))
    Engine([Agreeing(), static])


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
