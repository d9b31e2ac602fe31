"""What each action does at a place, on a toy with blocks, through the own loop."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from erta_framework import (
    Engine,
    FlowEuler,
    NoGuidance,
    SessionInfo,
)
from erta_framework.errors import CapabilityError, PolicyError
from erta_framework.modules import (
    KEEP,
    MODULES,
    PASS,
    SKIP,
    Ask,
    Keep,
    ModuleRun,
    ModuleSeam,
    Owner,
    Place,
    PlaceFinder,
    ReuseKept,
    Rows,
    Select,
    Tokens,
)
from erta_framework.session import make_site
from erta_framework.testing import BlockFlow
from module_plans import STEPS, Plan, every, plan, sample, visits

PLAIN = sample()


@pytest.mark.parametrize("kinds", [("attention",), ("mlp",), ("block",), ("attention", "mlp")])
@pytest.mark.parametrize("keep", [KEEP, Keep("residual")])
def test_keeping_changes_no_bit(kinds, keep):
    kept = sample(plan(lambda _, call: dict.fromkeys(call.sites, keep), *kinds))
    assert torch.equal(kept.sample, PLAIN.sample)
    assert kept.trace.module_bytes > 0


def test_an_empty_plan_runs_everything():
    for nothing in (None, {}):
        found = sample(plan(lambda *_, nothing=nothing: nothing, "attention", "mlp"))
        assert torch.equal(found.sample, PLAIN.sample)
        assert found.trace.steps[1].calls[0].sites == {"attention": (3, 0, 0), "mlp": (3, 0, 0)}


@pytest.mark.parametrize("n", [2, 3])
def test_a_reused_module_does_not_run_and_the_trace_says_so(n):
    network = BlockFlow()
    paths = [f"blocks.{k}.{part}" for k in range(3) for part in ("attn.qkv", "mlp.up")]
    counts = visits(network, *paths)
    found = sample(plan(every(n), "attention"), network=network)
    computed = len(range(0, STEPS, n))
    for path, count in counts.items():
        assert count == 2 * (computed if "attn" in path else STEPS), path
    by_step = [step.calls[0].sites["attention"] for step in found.trace.steps]
    assert by_step == [(3, 0, 0) if k % n == 0 else (0, 3, 0) for k in range(STEPS)]
    assert found.trace.network_calls == 2 * STEPS
    assert not torch.equal(found.sample, PLAIN.sample)


def constant_steps(policy, network, steps=5):
    """The outputs of a session that calls the network on the same input at every step."""
    engine, schedule = Engine([policy]), FlowEuler().schedule(steps)
    x = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(5))
    info = SessionInfo(
        sigmas=schedule.sigmas,
        times=schedule.times[:-1],
        shape=tuple(x.shape),
        dtype=x.dtype,
        device=x.device,
        capabilities=frozenset({MODULES}),
    )
    owners = engine.own_places("model", network, PlaceFinder())
    site, outputs = make_site("model", "cond"), []
    with ModuleSeam({"model": network}, {"model": owners}) as seam, engine.session(info) as session:
        run = ModuleRun(seam, session)
        for index in range(steps):
            session.begin(schedule.interval(index))
            call = lambda: network(x, torch.full((2,), 500.0), torch.zeros(2, 3))  # noqa: E731
            outputs.append(session.forward(x, lambda call=call: run.run("model", site, x, call)))
            session.settle()
            session.end(x)
    return outputs


@pytest.mark.parametrize(
    ("kinds", "keep", "select"),
    [
        (("attention", "mlp"), KEEP, {}),
        (("block",), KEEP, {}),
        (("block",), Keep("residual"), {}),
        (("block",), KEEP, {"span": True}),
        (("block",), Keep("residual"), {"span": True}),
        (("block",), Keep("residual"), {"span": True, "depth": "1:"}),
    ],
)
def test_reuse_at_an_equal_input_gives_an_equal_output(kinds, keep, select):
    network = BlockFlow()
    outputs = constant_steps(plan(every(99, keep), *kinds, **select), network)
    for output in outputs[1:]:
        if keep.of == "output":
            assert torch.equal(output, outputs[0])
        else:  # x + (y - x) is y up to rounding
            torch.testing.assert_close(output, outputs[0], rtol=0, atol=1e-5)


def test_the_residual_of_a_span_is_added_once_to_the_input_of_its_first_block():
    network = BlockFlow()
    seen = []
    network.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    inputs = []
    network.blocks[1].register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    policy = plan(every(99, Keep("residual")), "block", span=True, depth="1:")
    sample(policy, network=network, guidance=NoGuidance())
    # blocks 0 and the embedding run at every step; the pre-hook of a passed block runs as well
    residual = seen[0] - inputs[0]
    for before, after in zip(inputs[2::2], seen[2::2], strict=True):
        torch.testing.assert_close(after, before + residual, rtol=0, atol=1e-5)


class Controlled(BlockFlow):
    """A toy that adds features of its own between the blocks, as with a ControlNet."""

    def _predict(self, x, sigma, shift):
        hidden = self.embed((x - shift).flatten(2).transpose(1, 2))
        features = hidden.sin()
        for block in self.blocks:
            hidden = block(hidden, 0.5 + sigma.reshape(-1, 1, 1)) + features
        return x - shift + self.head(hidden).transpose(1, 2).reshape(x.shape)


def test_what_is_added_between_the_blocks_of_a_span_is_part_of_its_residual_once():
    network = Controlled()
    outputs = constant_steps(plan(every(99, Keep("residual")), "block", span=True), network)
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=0, atol=1e-5)


def test_weights_combine_what_is_kept_newest_first():
    network, given, seen = BlockFlow(), [], []
    # hooks of a module see what its gate answers
    network.blocks[0].attn.register_forward_hook(lambda _, __, out: seen.append(out))

    def make(step, call):
        (place,) = call.sites
        if step.index < 2:
            return {place: KEEP}
        given.append([e.tensors["output.0.0"] for e in call.kept(place)])
        return {place: ReuseKept((2.0, -1.0))}

    sample(plan(make, "attention", keeps=2, depth="0"), network=network)
    assert len(given) == 2 * (STEPS - 2)
    for (newest, before), out in zip(given, seen[4:], strict=True):
        torch.testing.assert_close(out, 2.0 * newest - before)


def test_then_changes_what_is_reused():
    def double(tensor):
        return 2.0 * tensor

    outputs = constant_steps(plan(every(9, reuse=ReuseKept(then=double)), "block"), BlockFlow())
    twice = constant_steps(plan(every(9, reuse=ReuseKept((2.0,))), "block"), BlockFlow())
    torch.testing.assert_close(outputs[1], twice[1])


def test_then_may_be_one_change_for_each_tensor():
    def double(tensor):
        return 2.0 * tensor

    each = plan(every(9, reuse=ReuseKept(then=(double,))), "block")
    alike = plan(every(9, reuse=ReuseKept(then=double)), "block")
    found, expected = constant_steps(each, BlockFlow()), constant_steps(alike, BlockFlow())
    assert torch.equal(found[1], expected[1])
    wrong = plan(every(9, reuse=ReuseKept(then=(double, double))), "block")
    with pytest.raises(PolicyError, match=r"changes 2 tensors of blocks\.0 .* its output is 1"):
        sample(wrong)


def test_a_phantom_that_reaches_the_prediction_shows_as_nan():
    def make(step, call):
        first, *rest = call.sites
        skipped = {first: SKIP} if step.index else {first: KEEP}
        return skipped | dict.fromkeys(rest, KEEP)

    found = sample(plan(make, "mlp"))
    assert found.sample.isnan().all()


def test_a_phantom_before_a_reused_output_is_never_used():
    def make(step, call):
        *before, last = call.sites
        if step.index % 2 == 0:
            return {last: KEEP}
        return dict.fromkeys(before, SKIP) | {last: ReuseKept()}

    found = sample(plan(make, "block"))
    assert found.sample.isfinite().all()
    assert found.trace.steps[1].calls[0].sites == {"block": (0, 1, 2)}


def test_passed_blocks_hand_their_input_on():
    network = BlockFlow()
    passed = plan(lambda s, c: dict.fromkeys(c.sites, PASS if s.index else KEEP), "block")
    outputs = constant_steps(passed, network)
    bare = constant_steps(plan(lambda *_: {}, "block"), Bare(network))
    assert torch.equal(outputs[1], bare[0])


class Bare(BlockFlow):
    """The embedding and the head of another toy, with blocks that change nothing."""

    def __init__(self, other):
        super().__init__()
        self.embed, self.head = other.embed, other.head
        for block in self.blocks:
            block.forward = lambda hidden_states, gate: hidden_states


def test_tokens_run_alone_and_the_others_stay():
    network, sizes, outputs = BlockFlow(), [], []
    network.blocks[1].mlp.up.register_forward_pre_hook(lambda _, g: sizes.append(g[0].shape[1]))
    network.blocks[1].mlp.register_forward_hook(lambda *a: outputs.append(a[2]))
    chosen = torch.tensor([0, 5, 7])

    def make(step, call):
        (place,) = call.sites
        return {place: KEEP if call.age(place) is None else Tokens(chosen)}

    policy = Plan(make=make, selected=(Select(kind=("mlp",), depth="1"),))
    found = sample(policy, network=network, guidance=NoGuidance())
    assert sizes[0] == 32
    assert set(sizes[1:]) <= {3, 32}
    first, second = outputs[0], outputs[2]
    same = torch.tensor([k for k in range(32) if k not in (0, 5, 7)])
    assert torch.equal(first[:, same], second[:, same])
    assert not torch.equal(first[:, chosen], second[:, chosen])
    assert found.sample.isfinite().all()


def test_tokens_are_refused_where_tokens_are_not_alone():
    def make(step, call):
        return {p: KEEP if step.index == 0 else Tokens(torch.tensor([0])) for p in call.sites}

    with pytest.raises(CapabilityError, match=r"blocks.0 .ToyBlock. cannot run on some tokens"):
        sample(plan(make, "block"))


def test_rows_run_alone_and_keep_their_own_age():
    network, sizes, ages = BlockFlow(), [], []
    network.blocks[0].attn.qkv.register_forward_pre_hook(lambda _, g: sizes.append(g[0].shape[0]))

    def make(step, call):
        (place,) = call.sites
        ages.append((call.branch, call.age(place)))
        return {place: KEEP if step.index == 0 else Rows((1,))}

    policy = Plan(make=make, selected=(Select(kind=("attention",), depth="0"),))
    sample(policy, network=network, batch=3)
    assert sizes[:2] == [3, 3]
    assert set(sizes[2:]) == {1}
    # the sample that waits longest decides
    assert [age for branch, age in ages if branch == "cond"] == [None, 1, 2, 3, 4, 5]


def test_ask_sees_the_visit_and_answers():
    seen = []

    def answer(visit):
        seen.append((visit.place.path, visit.age, tuple(visit.x.shape)))
        if visit.age is None or visit.age >= 2:
            return visit.run(keep="output")
        return visit.reuse(ReuseKept())

    asked = sample(plan(lambda _, call: dict.fromkeys(call.sites, Ask(answer)), "attention"))
    fixed = sample(plan(every(2), "attention"))
    assert torch.equal(asked.sample, fixed.sample)
    assert asked.trace.steps[1].calls[0].sites == {"attention": (0, 3, 0)}
    assert seen[0] == ("blocks.0.attn", None, (2, 32, 8))


def test_ask_may_change_the_plan_of_places_ahead():
    def answer(visit):
        if visit.age is None:
            return visit.run(keep="output")
        *_, last = visit.call.sites
        for place in visit.call.sites[1:-1]:
            visit.assign(place, SKIP)
        visit.assign(last, ReuseKept())
        return visit.run()

    def make(step, call):
        first, *rest = call.sites
        return {first: Ask(answer)} | dict.fromkeys(rest, KEEP)

    found = sample(plan(make, "block"))
    assert found.sample.isfinite().all()
    assert found.trace.steps[1].calls[0].sites == {"block": (1, 1, 1)}


def test_ask_may_not_change_what_the_network_has_passed():
    def answer(visit):
        visit.assign(visit.call.sites[0], KEEP)
        return visit.run()

    def make(step, call):
        return {call.sites[1]: Ask(answer)}

    with pytest.raises(PolicyError, match=r"blocks\.0 at step 0 after the network had reached it"):
        sample(plan(make, "block"))


def test_an_asked_place_keeps_features_of_the_policy_row_by_row():
    seen = []

    def answer(visit):
        output = visit.run()
        change = visit.name_streams(output)["hidden_states"] - visit.streams["hidden_states"]
        seen.append(([float(f.sum()) for f in visit.features], float(change.sum(1).sum())))
        visit.keep(change.sum(1))
        return output

    asked = plan(lambda _, call: dict.fromkeys(call.sites, Ask(answer)), "block", depth="0")
    found = sample(asked, guidance=NoGuidance())
    assert torch.equal(found.sample, sample(guidance=NoGuidance()).sample)
    assert seen[0][0] == []
    for (_, before), (held, _) in pairwise(seen):
        assert held == [before]
    assert found.trace.module_bytes == 2 * 8 * 4


def test_a_feature_is_no_output_and_has_a_row_for_each_sample():
    def reuse_it(visit):
        if visit.age is not None:
            return visit.reuse(ReuseKept())
        visit.keep(visit.x)
        return visit.run()

    def keep_one_row(visit):
        visit.keep(visit.x[:1])
        return visit.run()

    for answer, message in ((reuse_it, "its feature is kept"), (keep_one_row, "but 2 samples run")):
        asked = plan(lambda _, call, a=answer: dict.fromkeys(call.sites, Ask(a)), "block")
        with pytest.raises(PolicyError, match=message):
            sample(asked)


def test_what_is_forgotten_is_not_kept():
    def make(step, call):
        if step.index == 2:
            call.forget(call.sites[0])
            assert call.age(call.sites[0]) is None
            assert call.age(call.sites[1]) == 2
        return dict.fromkeys(call.sites, KEEP) if step.index == 0 else {}

    network = BlockFlow()
    assert torch.equal(sample(plan(make, "attention"), network=network).sample, PLAIN.sample)


BAD = [
    (lambda s, c: {c.sites[0]: ReuseKept()}, "0 of 1 outputs are kept; KEEP it first"),
    (lambda s, c: {c.sites[0]: "keep"}, "assigned 'keep' to blocks.0.attn"),
    (lambda s, c: {"blocks.0.attn": KEEP}, "which it does not select"),
    (lambda s, c: [KEEP], "return a mapping from places"),
    (lambda s, c: {c.sites[0]: KEEP if not s.index else ReuseKept((1.0, 0.0))}, "let keeps.. be 2"),
    (lambda s, c: {c.sites[0]: Rows((0,))}, "assigned Rows to blocks.0.attn"),
    (lambda s, c: {c.sites[0]: KEEP if not s.index else ReuseKept(of="residual")}, "its output is"),
    (lambda s, c: {c.sites[0]: SKIP}, "its output is known of 0 visits"),
    (lambda s, c: 1 / 0, "raised ZeroDivisionError in hook 'assign' at step 0"),
    (lambda s, c: {c.sites[0]: Ask(lambda visit: 1 / 0)}, "raised ZeroDivisionError at blocks.0"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_a_plan_that_cannot_be_carried_out_is_refused_by_name(make, message):
    network = BlockFlow()
    with pytest.raises(PolicyError, match=message) as caught:
        sample(plan(make, "attention"), network=network)
    assert "Plan" in str(caught.value) or "blocks.0.attn" in str(caught.value)
    assert "forward" not in vars(network.blocks[0].attn)


def test_a_residual_needs_an_input_of_its_shape():
    class Pooled(BlockFlow):
        def __init__(self):
            super().__init__()
            for block in self.blocks:
                block.attn = Mean(1, 1)

    class Mean(torch.nn.Linear):
        def forward(self, hidden_states):
            return hidden_states.mean(1, keepdim=True)

    Mean.__name__ = "MeanAttention"
    keep = plan(lambda _, c: dict.fromkeys(c.sites, Keep("residual")), "attention")
    with pytest.raises(CapabilityError, match=r"MeanAttention.* continues none of its inputs"):
        sample(keep, network=Pooled())


class TwoStreams(torch.nn.Module):
    """A joint attention: image and text in, image and text out."""

    def forward(self, image, text):
        return image * 2, text * 3


def test_tensors_after_the_first_may_have_weights_of_their_own():
    network = torch.nn.Module()
    network.blocks = torch.nn.ModuleList([TwoStreams()])
    place = Place("blocks.0", "block", 0, "blocks", ("blocks.0",))
    given = [torch.tensor([[float(k)]]) for k in (1, 2, 5)]
    plans = [KEEP, KEEP, ReuseKept((1.5, -0.5), rest=(1.0,))]
    owner = Owner("plan", (place,), 2, lambda where, step, parts: {place: plans[step.index]})
    info = SessionInfo(
        sigmas=(1.0, 0.7, 0.3, 0.0),
        times=(1000.0, 700.0, 300.0),
        shape=(1, 1),
        dtype=torch.float32,
        device=torch.device("cpu"),
        capabilities=frozenset({MODULES}),
    )
    found = []
    with ModuleSeam({"model": network}, {"model": (owner,)}) as seam, Engine([]).session(info) as s:
        run, site = ModuleRun(seam, s), make_site("model", "cond")
        for index, x in enumerate(given):
            s.begin(FlowEuler().schedule(3).interval(index))
            found.append(run.run("model", site, x, lambda x=x: network.blocks[0](x, x)))
            s.forward(x, lambda x=x: x)
            s.settle()
            s.end(x)
    # 4 + (4 - 2) / 2, and the newest text
    assert [float(tensor) for tensor in found[2]] == [5.0, 6.0]


@pytest.mark.parametrize("rest", [(), (1.0, 0.0)])
def test_weights_of_the_tensors_after_the_first_are_as_many_as_those_of_the_first(rest):
    with pytest.raises(PolicyError, match="for the tensors after the first, and 1 for the first"):
        ReuseKept((1.0,), rest=rest)
