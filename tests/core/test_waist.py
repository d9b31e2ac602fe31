"""Sites inside a network, evaluations that are no residuals, and who may keep state."""

from __future__ import annotations

from dataclasses import field

import pytest
import torch

from erta_framework import (
    Compute,
    Engine,
    FunctionNetwork,
    Interval,
    Needs,
    Policy,
    Reuse,
    Seam,
    Site,
    Traits,
    hookimpl,
)
from erta_framework.errors import PolicyError, ProtocolError

WHOLE = Site("model", "cond")
BLOCK = Site("model", "cond", "blocks.3")
EVERYWHERE = frozenset(Seam)


class AtBlock(Policy):
    """Reuses the block at the listed steps, the whole network never."""

    traits = Traits(static=True, seams=EVERYWHERE, memory=Needs(evaluations=1))
    steps: tuple[int, ...] = ()
    seen: list = field(default_factory=list)

    @hookimpl
    def decide(self, step, call):
        self.seen.append((step.index, call.site))
        inside = call.seam is Seam.MODULE
        return Reuse("listed") if inside and step.index in self.steps else Compute("whole")


class Nested:
    """A driver of a network with one block: `net(x) = 2 * block(x + 1)`, `block(h) = h * h`."""

    def __init__(self, session):
        self.session = session
        self.whole = self.blocks = 0

    def block(self, hidden):
        self.blocks += 1
        return hidden * hidden

    def network(self, x):
        self.whole += 1
        hidden = x + 1.0
        inside = FunctionNetwork(lambda: self.block(hidden))
        return 2.0 * self.session.forward(BLOCK, hidden, inside)

    def step(self, index, x):
        begin(self.session, index)
        output = self.session.forward(WHOLE, x, FunctionNetwork(lambda: self.network(x)))
        self.session.settle()
        self.session.end(x)
        return output


def begin(session, index=0):
    start, end = session.info.sigmas[index : index + 2]
    session.begin(Interval(index, start, end, 1000 * start, 1000 * end))


# ---------------------------------------------------------------------------------- nested calls
def test_a_place_inside_the_network_has_its_own_history_and_is_no_network_call(info):
    seen = []
    engine = Engine([AtBlock(steps=(1,), seen=seen)])
    latents = [torch.full((1, 2, 3), value) for value in (1.0, 2.0, 3.0)]
    with engine.session(info(steps=3)) as session:
        driver = Nested(session)
        outputs = [driver.step(index, x) for index, x in enumerate(latents)]
    # the block's residual of step 0 is 2 * 2 - 2, added to the hidden 3 of step 1
    assert [float(output[0, 0, 0]) for output in outputs] == [8.0, 10.0, 32.0]
    assert (driver.whole, driver.blocks) == (3, 2)
    trace = session.trace
    assert trace.network_calls == trace.network_samples == 3
    assert [[call.computed for call in step.calls] for step in trace.steps] == [[True]] * 3
    assert [[call.computed for call in step.inner] for step in trace.steps] == [
        [True],
        [False],
        [True],
    ]
    assert {call.path for step in trace.steps for call in step.inner} == {"blocks.3"}
    assert trace.steps[1].inner[0].source == 0
    assert all(call.path == "" for call in trace.calls())
    # nobody is asked where there is no history yet
    assert seen == [(1, WHOLE), (1, BLOCK), (2, WHOLE), (2, BLOCK)]


def test_a_decision_for_the_whole_network_is_not_one_for_a_place_inside_it(info):
    class Whole(Policy):
        traits = Traits(seams=EVERYWHERE, memory=Needs(evaluations=1))

        @hookimpl
        def decide(self, call):
            return Compute("the whole") if call.seam is Seam.LATENT else Reuse("the block")

    with Engine([Whole()]).session(info(steps=2)) as session:
        driver = Nested(session)
        for index in range(2):
            driver.step(index, torch.ones(1, 2, 3))
    last = session.trace.steps[1]
    assert (last.calls[0].reason, last.inner[0].reason) == ("the whole", "the block")


def test_a_place_inside_the_network_has_its_own_state(info):
    class Counts(Policy):
        traits = Traits(seams=EVERYWHERE)

        @hookimpl(wrapper=True)
        def forward(self, call):
            call.state_of(self, list).append(call.site.path)
            found.append((call.site.path, tuple(call.state_of(self, list))))
            return (yield)

    found: list = []
    with Engine([Counts()]).session(info(steps=2)) as session:
        driver = Nested(session)
        for index in range(2):
            driver.step(index, torch.ones(1, 2, 3))
    assert found == [
        ("", ("",)),
        ("blocks.3", ("blocks.3",)),
        ("", ("", "")),
        ("blocks.3", ("blocks.3", "blocks.3")),
    ]


def test_an_inner_call_that_is_not_answered_is_refused(info):
    with Engine([]).session(info()) as session:
        begin(session)
        x = torch.ones(1, 2, 3)

        def network():
            session.ask(BLOCK, x, FunctionNetwork(lambda: x))
            return x

        with pytest.raises(ProtocolError, match=r"blocks\.3.* which was asked inside it"):
            session.forward(WHOLE, x, FunctionNetwork(network))
        with pytest.raises(ProtocolError, match="settle before any forward"):
            session.settle()


def test_calls_are_answered_in_the_reverse_order_of_asking(info):
    with Engine([]).session(info()) as session:
        begin(session)
        x = torch.ones(1, 2, 3)
        outer = session.ask(WHOLE, x, FunctionNetwork(lambda: x))
        inner = session.ask(BLOCK, x, FunctionNetwork(lambda: x))
        with pytest.raises(ProtocolError, match=r"blocks\.3 comes first.*reverse order"):
            session.answer(outer)
        with pytest.raises(ProtocolError, match=r"settle in step 0 before .*was answered"):
            session.settle()
        session.answer(inner)
        session.answer(outer)
        with pytest.raises(ProtocolError, match="nothing was asked"):
            session.answer(outer)


@pytest.mark.parametrize(
    ("site", "words"),
    [
        (WHOLE, "was asked in step 0 before"),
        (Site("model", "uncond", "blocks.3"), "was asked in step 0 before"),
        (Site("other", "cond", "blocks.3"), "was asked in step 0 before"),
    ],
    ids=["the same place", "another branch", "another network"],
)
def test_what_is_not_inside_the_open_call_is_refused(info, site, words):
    with Engine([]).session(info()) as session:
        begin(session)
        x = torch.ones(1, 2, 3)
        session.ask(WHOLE, x, FunctionNetwork(lambda: x))
        with pytest.raises(ProtocolError, match=words):
            session.ask(site, x, FunctionNetwork(lambda: x))


def test_the_same_place_is_asked_once_a_step(info):
    with Engine([]).session(info(steps=2)) as session:
        x = torch.ones(1, 2, 3)
        for index in range(2):
            begin(session, index)
            outer = session.ask(WHOLE, x, FunctionNetwork(lambda: x))
            session.forward(BLOCK, x, FunctionNetwork(lambda: x))
            with pytest.raises(ProtocolError, match=r"blocks\.3 was already answered in step"):
                session.forward(BLOCK, x, FunctionNetwork(lambda: x))
            session.answer(outer)
            with pytest.raises(ProtocolError, match="branch 'cond' was already answered"):
                session.forward(WHOLE, x, FunctionNetwork(lambda: x))
            session.settle()
            session.end(x)


def test_the_whole_network_does_not_lie_inside_a_block(info):
    with Engine([]).session(info()) as session:
        begin(session)
        x = torch.ones(1, 2, 3)
        session.ask(BLOCK, x, FunctionNetwork(lambda: x))
        with pytest.raises(ProtocolError, match="encloses the call that is open"):
            session.ask(WHOLE, x, FunctionNetwork(lambda: x))


# ------------------------------------------------------------- evaluations that are no residuals
class KeyValue(Policy):
    """Answers a reused call with the kept values, which have another width than the input."""

    decides: str = "step"
    steps: tuple[int, ...] = (1,)
    seen: list = field(default_factory=list)

    @property
    def traits(self):
        return Traits(seams=EVERYWHERE, decides=self.decides, memory=Needs(evaluations=2))

    @hookimpl
    def decide(self, step, call):
        if step.index not in self.steps:
            return Compute("not listed")
        if self.decides == "step":
            return Reuse("listed")
        return Reuse("listed", mask=[row % 2 == 0 for row in range(call.x.shape[0])])

    @hookimpl
    def forward(self, call):
        if not call.reused:
            return None
        self.seen.append(call.history[0])
        return call.history[0].tensor("value")


def attend(x):
    """Values of another width than the input, `[B, 2]`."""
    return torch.stack([x.sum(1), x.amax(1)], dim=1)


def keep(x, output):
    return {"key": x[:, :1].clone(), "value": output.clone()}


def run_attention(info, policy, latents):
    """An attention that keeps keys and values; its outputs and the session."""
    outputs = []
    site = Site("model", "cond", "blocks.0.attn")
    facts = info(steps=len(latents), shape=tuple(latents[0].shape), seam=Seam.MODULE)
    with Engine([policy]).session(facts) as session:
        for index, x in enumerate(latents):
            begin(session, index)
            network = FunctionNetwork(
                lambda x=x: attend(x), rows=lambda rows, x=x: attend(x[rows]), kept=keep
            )
            outputs.append(session.forward(site, x, network))
            session.settle()
            session.end(x)
        bytes_held = session._history.bytes
    return outputs, session, bytes_held


def test_an_evaluation_may_keep_something_else_than_a_residual(info):
    seen: list = []
    latents = [torch.arange(6.0).reshape(2, 3) + 10 * index for index in range(3)]
    outputs, session, held = run_attention(info, KeyValue(seen=seen), latents)
    assert torch.equal(outputs[1], attend(latents[0]))
    assert torch.equal(outputs[2], attend(latents[2]))
    (kept,) = seen
    assert set(kept.tensors) == {"key", "value"}
    assert torch.equal(kept.tensor("key"), latents[0][:, :1])
    # two evaluations of two samples, a key and two values of float32 each
    assert held == session.trace.history_bytes == 2 * 2 * 3 * 4
    with pytest.raises(PolicyError, match="keeps key, value, no 'residual'"):
        _ = kept.residual
    assert "residual" not in kept.tensors


def test_what_is_kept_is_kept_for_each_sample(info):
    seen: list = []
    policy = KeyValue(decides="sample", steps=(1, 2), seen=seen)
    latents = [torch.arange(9.0).reshape(3, 3) + 10 * index for index in range(3)]
    outputs, session, _ = run_attention(info, policy, latents)
    for index in (1, 2):  # sample 1 is computed, the others are those of step 0
        assert torch.equal(outputs[index][1], attend(latents[index])[1])
        assert torch.equal(outputs[index][0], attend(latents[0])[0])
        assert torch.equal(outputs[index][2], attend(latents[0])[2])
    assert [call.rows for call in session.trace.calls()] == [None, (1,), (1,)]
    assert session.trace.network_samples == 3 + 1 + 1
    assert {evaluation.index for evaluation in seen} == {0}
    assert all(evaluation.tensor("value").shape == (2, 2) for evaluation in seen)


def test_samples_of_one_batch_have_one_shape(info):
    class Narrow(KeyValue):
        @hookimpl
        def decide(self, step, call):
            return Reuse("odd samples", mask=[row % 2 == 0 for row in range(call.x.shape[0])])

        @hookimpl
        def forward(self, call):
            return call.history[0].tensor("key") if call.reused else None

    latents = [torch.arange(9.0).reshape(3, 3)] * 2
    with pytest.raises(PolicyError, match=r"returned \(2, 1\) .* for 2 samples and \(1, 2\)"):
        run_attention(info, Narrow(decides="sample"), latents)


def test_without_a_policy_that_knows_it_what_is_kept_is_no_residual(info):
    class Reuses(Policy):
        traits = Traits(seams=EVERYWHERE)

        @hookimpl
        def decide(self):
            return Reuse("always")

    latents = [torch.ones(1, 3), torch.ones(1, 3)]
    with pytest.raises(PolicyError, match="keeps key, value, no 'residual'"):
        run_attention(info, Reuses(), latents)


# -------------------------------------------------------------------------------- who keeps state
class Holds(Policy):
    """Keeps state for another policy."""

    other: Policy | None = None
    temporary: bool = False
    adopts: bool = False

    @hookimpl
    def pre_step(self, step):
        other = AtBlock() if self.temporary else self.other
        if self.adopts:
            step.session.adopt(other)
        step.session.state_of(other, list).append(step.index)


@pytest.mark.parametrize("hook", ["session", "call"])
def test_the_state_of_a_temporary_policy_is_refused(info, hook):
    class Calls(Policy):
        @hookimpl(wrapper=True)
        def forward(self, call):
            call.state_of(AtBlock(), list)
            return (yield)

    policy = Holds(temporary=True) if hook == "session" else Calls()
    with Engine([policy]).session(info()) as session:
        x = torch.ones(1, 2, 3)
        with pytest.raises(PolicyError, match=r"AtBlock\(.*no policy of this engine.* pass self"):
            begin(session) or session.forward(WHOLE, x, FunctionNetwork(lambda: x))


@pytest.mark.parametrize("policy", [Holds(other=AtBlock()), Holds(temporary=True, adopts=True)])
def test_a_policy_that_is_held_or_adopted_may_keep_state(info, policy):
    with Engine([policy]).session(info()) as session:
        begin(session)
        assert len(session.info.states) == 1


# ------------------------------------------------------------------------- decisions of one branch
@pytest.mark.parametrize("decision", [Reuse("here", scope="branch"), Compute("here", "branch")])
def test_a_decision_for_one_branch_must_be_declared(run, decision):
    class Undeclared(Policy):
        @hookimpl
        def decide(self):
            return decision

    with pytest.raises(PolicyError, match=r"for branch 'cond' alone, but declares no traits"):
        run([Undeclared()], steps=2)


@pytest.mark.parametrize("unit", ["branch", "sample"])
def test_a_declared_decision_for_one_branch_is_taken(run, unit):
    class Declared(Policy):
        decides: str = "branch"

        @property
        def traits(self):
            return Traits(decides=self.decides)

        @hookimpl
        def decide(self):
            return Reuse("here", scope="branch")

    trace = run([Declared(decides=unit)], steps=2).trace
    assert [call.reason for call in trace.steps[1].calls] == ["here"] * len(trace.steps[1].calls)
