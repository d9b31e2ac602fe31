"""What an asked function may keep of its visit: inputs, outputs that it made, of some samples."""

from __future__ import annotations

import itertools

import pytest
import torch

from erta_framework import CFG, Engine, FlowEuler, SamplingLoop
from erta_framework.errors import PolicyError
from erta_framework.modules import Ask, ReuseKept
from erta_framework.testing import BlockFlow
from module_plans import STEPS, Plan, every, plan, request, sample, visits


class WithInputs(Plan):
    def keeps_inputs(self):
        return True


def asked(function, *kinds, keeps=1, inputs=False, **select):
    """A policy whose places are all answered by a function of the visit."""
    made = plan(lambda step, call: dict.fromkeys(call.sites, Ask(function)), *kinds, **select)
    cls = WithInputs if inputs else Plan
    return cls(make=made.make, depth=keeps, selected=made.selected)


def run_and_keep_input(visit):
    output = visit.run(keep="output")
    visit.keep_input()
    return output


@pytest.mark.parametrize("keeps", [1, 2])
@pytest.mark.parametrize("kind", ["attention", "mlp", "block"])
def test_an_input_is_kept_beside_each_output_and_counted(kind, keeps):
    seen = []

    def answer(visit):
        if visit.kept_input is not None:
            seen.append((visit.place, visit.step.index, visit.kept_input, len(visit.kept)))
        given[visit.call.branch, visit.place, visit.step.index] = visit.x.clone()
        return run_and_keep_input(visit)

    given = {}
    found = sample(asked(answer, kind, keeps=keeps, inputs=True), guidance=None)
    for place, index, kept, depth in seen:
        assert any(torch.equal(kept, given[b, place, index - 1]) for b in ("cond", "uncond"))
        assert depth == min(keeps, index)
    assert len(seen) > STEPS
    trace = found.trace
    assert trace.module_bytes == trace.state_bytes
    without = sample(plan(every(1), kind, keeps=keeps)).trace
    assert trace.module_bytes == 2 * without.module_bytes  # as large as the outputs here
    assert torch.equal(found.sample, sample().sample)


def test_reused_is_no_visit_so_that_the_module_may_run_as_well():
    def answer(visit):
        if visit.age is None:
            return visit.run(keep="residual")
        stale = visit.reuse(ReuseKept(of="residual"))
        assert not visit.ran
        fresh = visit.run()
        again = visit.reuse(ReuseKept(of="residual"))
        assert visit.ran
        assert torch.equal(stale, again)
        return fresh

    network = BlockFlow()
    counts = visits(network, "blocks.0.attn.qkv")
    found = sample(asked(answer, "block"), network=network)
    assert torch.equal(found.sample, sample().sample)
    assert [*counts.values()] == [2 * STEPS]
    assert found.trace.work == 2 * STEPS * 2
    # and one that only reused has not run
    stale = sample(
        asked(
            lambda v: v.run(keep="output") if v.age is None else v.reuse(ReuseKept()), "attention"
        )
    )
    assert torch.equal(stale.sample, sample(plan(every(99), "attention")).sample)
    assert stale.trace.work == sample(plan(every(99), "attention")).trace.work


@pytest.mark.parametrize("of", ["output", "residual"])
def test_a_made_output_is_kept_and_reused_as_one_that_the_module_returned(of):
    def answer(visit):
        if visit.age is None:
            output = 2 * visit.run()
            visit.keep_output(output, of)
            made[visit.call.branch, visit.place] = output - visit.x if of == "residual" else output
            return output
        expected = made[visit.call.branch, visit.place]
        reused = visit.reuse(ReuseKept(of=of))
        assert torch.equal(reused, visit.x + expected if of == "residual" else expected)
        return reused

    made = {}
    found = sample(asked(answer, "block"))
    assert found.trace.work == pytest.approx(4.0, rel=0.5)
    assert found.trace.module_bytes == found.trace.state_bytes


def test_some_samples_are_kept_and_the_others_stay_as_they_were():
    kept = []

    def answer(visit):
        if visit.place.path == "blocks.0.attn" and visit.call.branch == "cond" and visit.kept:
            kept.append((visit.kept_input.clone(), visit.kept[0].example.clone()))
        output = visit.run()
        visit.keep_input()
        visit.keep_output(output, rows=(1,) if visit.step.index else None)
        return output

    sample(asked(answer, "attention", inputs=True))
    for (x, out), (later_x, later_out) in itertools.pairwise(kept):
        assert torch.equal(x[0], later_x[0])
        assert torch.equal(out[0], later_out[0])
        assert not torch.equal(out[1], later_out[1])
        assert not torch.equal(x[1], later_x[1])
    assert len(kept) == STEPS - 1


def test_a_function_answers_for_several_modules_at_the_last():
    ran = []

    def answer(visit):
        ran.append(visit.step.index)
        if visit.age is not None:
            return visit.reuse(ReuseKept())
        return visit.run(keep="output")

    network = BlockFlow()
    counts = visits(network, "blocks.0.attn.qkv", "blocks.2.attn.qkv")
    found = sample(asked(answer, "block", span=True), network=network)
    # what lies before the last has run, and counts as work
    assert [*counts.values()] == [2 * STEPS, 2]
    assert 2 < found.trace.work / 2 < 2 * STEPS
    assert ran == [step for step in range(STEPS) for _ in range(2)]


def test_what_cannot_be_kept_is_refused():
    def twice(visit):
        output = visit.run(keep="output")
        visit.keep_output(output)
        return output

    def residual_of_several(visit):
        output = visit.run()
        visit.keep_output(output, "residual")
        return output

    def reuse_residual(visit):
        if visit.age is None:
            return visit.run(keep="output")
        return visit.reuse(ReuseKept(of="residual"))

    def no_rows(visit):
        output = visit.run()
        visit.keep_output(output[:1], rows=(0,))
        return output

    with pytest.raises(PolicyError, match=r"keeps two outputs of blocks\.0\.attn.*at step 0"):
        sample(asked(twice, "attention"))
    with pytest.raises(PolicyError, match=r"asks for a residual of .*several modules"):
        sample(asked(reuse_residual, "block", span=True))
    with pytest.raises(PolicyError, match=r"asks for a residual of .*several modules"):
        sample(asked(residual_of_several, "block", span=True))
    with pytest.raises(PolicyError, match=r"keeps some samples of .*no row for each"):
        sample(asked(no_rows, "attention"))


def test_values_of_each_sample_are_those_on_which_ranks_agree():
    asks = []

    def agree(value, where):
        asks.append(where)
        return value + 1

    def answer(visit):
        found.append(visit.agree_each(torch.tensor([0.5, 2.0])))
        return visit.run()

    found = []
    sample(asked(answer, "attention", depth="0:1"))
    assert found[0] == [0.5, 2.0]
    engine = Engine([asked(answer, "attention", depth="0:1")])
    type(engine).agree, kept = property(lambda self: agree), type(engine).agree
    try:
        found.clear()
        SamplingLoop(engine, FlowEuler(), CFG(scale=2.0)).run(BlockFlow(), request())
    finally:
        type(engine).agree = kept
    assert found[0] == [1.5, 3.0]
    assert "at blocks.0.attn in step 0" in asks[0]
