"""One branch answered from the history of another, and policies that revise a shared decision."""

from __future__ import annotations

from collections.abc import Generator

import pytest
import torch

from erta_framework import Compute, Engine, Interval, Needs, Policy, Reuse, Traits, hookimpl
from erta_framework.errors import PolicyError

X = torch.arange(6.0).reshape(1, 2, 3)


def interval(index, steps=4):
    start, end = 1 - index / steps, 1 - (index + 1) / steps
    return Interval(index, start, end, 1000 * start, 1000 * end)


def step_of(session, index, factors, branches=("cond", "uncond")):
    """A step whose branches multiply their input by these factors; the outputs."""
    session.begin(interval(index))
    outputs = {
        name: session.forward(X + k, lambda k=k, f=f: f * (X + k), branch=name)
        for k, (name, f) in enumerate(zip(branches, factors, strict=True))
    }
    session.settle()
    session.end(X)
    return outputs


class Lends(Policy):
    """Computes, but lets `cond` stand in for `uncond` at some steps."""

    traits = Traits(sees_every_branch=True, decides="branch", memory=Needs(evaluations=1))
    steps: tuple[int, ...] = (1, 2)
    seen: list = None  # type: ignore[assignment]

    @hookimpl(wrapper=True)
    def decide(self, step, call) -> Generator[None, object, object]:
        decision = yield
        if self.seen is not None:
            self.seen.append((step.index, call.branch, decision.reason, list(call.answers)))
        if call.branch == "uncond" and step.index in self.steps and "cond" in call.answers:
            return Reuse("cond stands in", "branch", branch="cond")
        return decision


class Says(Policy):
    """Computes every step, and counts how often it is asked."""

    asked: list

    @hookimpl
    def decide(self, step, call):
        self.asked.append((step.index, call.branch))
        return Compute("said")


def test_a_branch_that_lends_gives_its_residual_of_this_step(info):
    with Engine([Lends()]).session(info()) as session:
        step_of(session, 0, (2.0, 3.0))
        lent = step_of(session, 1, (5.0, 7.0))
        real = step_of(session, 3 - 1, (4.0, 7.0))
        own = step_of(session, 3, (2.0, 9.0))
    assert torch.equal(lent["cond"], 5.0 * X)
    assert torch.equal(lent["uncond"], (X + 1) + (5.0 * X - X))
    assert torch.equal(real["uncond"], (X + 1) + (4.0 * X - X))
    assert torch.equal(own["uncond"], 9.0 * (X + 1))
    trace = session.trace
    assert trace.network_calls == 6
    calls = [
        (c.index, c.branch, c.source, c.source_branch) for c in trace.calls() if not c.computed
    ]
    assert calls == [(1, "uncond", 1, "cond"), (2, "uncond", 2, "cond")]


def test_what_stood_in_is_no_computed_evaluation(info):
    histories = []

    class Watches(Policy):
        @hookimpl(wrapper=True)
        def decide(self, call):
            if call.branch == "uncond":
                histories.append([e.index for e in call.history])
            return (yield)

        traits = Traits(sees_every_branch=True, decides="branch")

    with Engine([Watches(), Lends()]).session(info()) as session:
        for index in range(4):
            step_of(session, index, (2.0, 3.0))
    assert histories == [[0], [0], [0]]  # asked from step 1 on; steps 1 and 2 were lent


def test_the_chain_is_asked_once_a_step_and_wrappers_before_enclose(info):
    class Vetoes(Policy):
        """A limit listed before: nothing is reused at step 2."""

        @hookimpl(wrapper=True)
        def decide(self, step, call):
            decision = yield
            return Compute("veto", decision.scope) if step.index == 2 else decision

    asked, seen = [], []
    engine = Engine([Vetoes(), Lends(seen=seen), Says(asked=asked)])
    with engine.session(info()) as session:
        for index in range(4):
            step_of(session, index, (2.0, 3.0))
    assert asked == [(1, "cond"), (2, "cond"), (3, "cond")]
    assert [(i, b, names) for i, b, _, names in seen] == [
        (i, b, names) for i in (1, 2, 3) for b, names in (("cond", []), ("uncond", ["cond"]))
    ]
    lent = [c.index for c in session.trace.calls() if c.source_branch]
    assert lent == [1]


def test_wrappers_listed_after_are_not_asked_again(info):
    asked = []

    class Behind(Policy):
        @hookimpl(wrapper=True)
        def decide(self, step, call):
            asked.append((step.index, call.branch))
            return (yield)

    with Engine([Lends(), Behind()]).session(info()) as session:
        for index in range(3):
            step_of(session, index, (2.0, 3.0))
    assert asked == [(1, "cond"), (2, "cond")]


def test_answers_are_those_of_this_step_only(info):
    seen = []
    with Engine([Lends(steps=(), seen=seen)]).session(info()) as session:
        for index in range(3):
            step_of(session, index, (2.0, 3.0))
    assert [names for _, branch, _, names in seen if branch == "cond"] == [[], []]


def test_a_step_cannot_be_answered_from_one_branch():
    with pytest.raises(PolicyError, match='give scope="branch"'):
        Reuse("all", branch="cond")


def test_a_branch_that_remembers_nothing_cannot_stand_in(info):
    class Wrong(Policy):
        traits = Traits(decides="branch")

        @hookimpl
        def decide(self, call):
            return Reuse("other", "branch", branch="third")

    with Engine([Wrong()]).session(info()) as session:
        step_of(session, 0, (2.0, 3.0))
        with pytest.raises(PolicyError, match=r"'third' stand in for 'cond'.*but nothing is"):
            step_of(session, 1, (2.0, 3.0))


def test_a_reviser_wraps_decide():
    class Plain(Policy):
        traits = Traits(sees_every_branch=True, decides="branch")

        @hookimpl
        def decide(self):
            return None

    with pytest.raises(PolicyError, match="sees_every_branch=True in its traits, but does not"):
        Engine([Plain()])
