"""Random sequences of a session's verbs, legal and not, against a model of what must hold.

The model is small: a stage, the branches that have their prediction, and the calls that the network
really got. Whatever the order, a refused verb changes nothing, no call is lost or counted twice,
and a reused output is the newest one that the network gave this branch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor

from erta_framework import (
    Call,
    Compute,
    Decision,
    Engine,
    FunctionNetwork,
    Interval,
    Policy,
    Reuse,
    Session,
    SessionInfo,
    Site,
    Step,
    Traits,
    hookimpl,
)
from erta_framework.errors import ProtocolError

STEPS = 5
BRANCHES = ("cond", "uncond")
X = torch.zeros(1, 2, 3)
BRANCH = st.sampled_from(BRANCHES)
VERBS = st.sampled_from(["begin", "forward", "settle", "end", "note"])


class Listed(Policy):
    """Reuses a branch on the steps listed for it."""

    reused: frozenset[tuple[str, int]] = frozenset()
    traits = Traits(decides="branch", static=True)

    @hookimpl
    def decide(self, step: Step, call: Call) -> Decision:
        if (call.branch, step.index) in self.reused:
            return Reuse("listed", scope="branch")
        return Compute("listed", scope="branch")


class Lost(Exception):
    """Raised by the network on request."""


def open_session(reused: frozenset[tuple[str, int]]) -> Session:
    sigmas = tuple(1.0 - i / STEPS for i in range(STEPS + 1))
    info = SessionInfo(
        sigmas=sigmas,
        times=tuple(1000.0 * sigma for sigma in sigmas[:-1]),
        shape=(1, 2, 3),
        dtype=torch.float32,
        device=torch.device("cpu"),
        branches=(),
        request_id="fuzzed",
    )
    return Engine([Listed(reused=reused)]).session(info)


class SessionSequence(RuleBasedStateMachine):
    """One session after another, driven by hand in any order."""

    session: Session

    @initialize(reused=st.frozensets(st.tuples(BRANCH, st.integers(1, STEPS - 1))))
    def open(self, reused: frozenset[tuple[str, int]]) -> None:
        self.reused = reused
        self.start()

    def start(self) -> None:
        self.session = open_session(self.reused).__enter__()
        self.stage = "between"
        self.index = 0
        self.answered: set[str] = set()
        self.cold = False
        self.kept: dict[str, Tensor] = {}
        self.ran = 0
        self.returned = 0

    # ---------------------------------------------------------------- the legal verbs
    @precondition(lambda self: self.stage == "between" and self.index < STEPS)
    @rule()
    def begin(self) -> None:
        self.session.begin(self.interval(self.index))
        self.stage, self.answered, self.cold = "running", set(), False

    @precondition(lambda self: self.stage == "running")
    @rule(branch=BRANCH, value=st.floats(-2.0, 2.0, width=32))
    def forward(self, branch: str, value: float) -> None:
        if branch in self.answered:
            self.refuse("forward", branch)
            return
        fresh = torch.full((1, 2, 3), value)
        # at latents of zero, the residual is the output
        found = self.session.forward(Site("model", branch), X, self.network(fresh))
        # a branch with nothing to reuse makes the rest of the step compute
        self.cold = self.cold or branch not in self.kept
        may_reuse = (branch, self.index) in self.reused and not self.cold
        expected = self.kept[branch] if may_reuse else fresh
        assert torch.equal(found, expected)
        if not may_reuse:
            self.kept[branch] = fresh
        self.answered.add(branch)
        self.returned += 1

    @precondition(lambda self: self.stage == "running" and not self.answered)
    @rule(branch=BRANCH)
    def fail(self, branch: str) -> None:
        """A network that raises leaves the branch without a prediction; it may be asked again."""
        due = (branch, self.index) not in self.reused or self.cold or branch not in self.kept

        def broken() -> Tensor:
            raise Lost

        if due:
            self.cold = self.cold or branch not in self.kept
            with pytest.raises(Lost):
                self.session.forward(Site("model", branch), X, FunctionNetwork(broken))

    @precondition(lambda self: self.stage == "running" and self.answered)
    @rule()
    def settle(self) -> None:
        given = self.interval(self.index)
        assert self.session.settle() == given
        self.stage = "settled"

    @precondition(lambda self: self.stage == "settled")
    @rule()
    def end(self) -> None:
        self.session.end(X)
        self.stage, self.index = "between", self.index + 1

    @rule(error=st.booleans())
    def close_and_open(self, error: bool) -> None:
        """Whatever was going on, the next session starts from nothing."""
        raised = Lost() if error else None
        self.session.__exit__(type(raised) if raised else None, raised, None)
        self.check_counts()
        with pytest.raises(ProtocolError):
            self.session.begin(self.interval(0))
        self.start()

    # ---------------------------------------------------------------- the illegal ones
    @rule(verb=VERBS, branch=BRANCH, step=st.integers(-1, STEPS + 1))
    def refuse(self, verb: str, branch: str, step: int = 0) -> None:
        legal = {
            "begin": self.stage == "between" and step == self.index < STEPS,
            "forward": self.stage == "running" and branch not in self.answered,
            "note": self.stage == "running" and branch not in self.answered,
            "settle": self.stage == "running" and bool(self.answered),
            "end": self.stage == "settled",
        }
        if legal[verb]:
            return
        with pytest.raises(ProtocolError):
            self.say(verb, branch, step)

    def say(self, verb: str, branch: str, step: int) -> Any:
        session, x = self.session, X
        match verb:
            case "begin":
                return session.begin(self.interval(step))
            case "forward":
                return session.forward(Site("model", branch), x, self.network(x))
            case "note":
                return session.note(x, branch=branch, reason="by hand", started=0.0)
            case "settle":
                return session.settle()
            case _:
                return session.end(x)

    # ---------------------------------------------------------------- what must hold
    @invariant()
    def check_counts(self) -> None:
        trace = self.session.trace
        assert trace.network_calls == self.ran
        assert len(trace.steps) == self.index + (self.stage == "settled")
        traced = [call for step in trace.steps for call in step.calls]
        assert sum(call.computed for call in traced) <= self.ran
        assert len(traced) == self.returned - (len(self.answered) if self.stage == "running" else 0)

    def network(self, value: Tensor) -> FunctionNetwork:
        def compute() -> Tensor:
            self.ran += 1
            return value

        return FunctionNetwork(compute)

    @staticmethod
    def interval(index: int) -> Interval:
        start, end = 1.0 - index / STEPS, 1.0 - (index + 1) / STEPS
        return Interval(index, start, end, 1000.0 * start, 1000.0 * end)


def check_sequences(examples: int, seed: int) -> None:
    machine = with_seed(seed)(SessionSequence)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_random_sequences_of_verbs(fuzz_seed: int, examples: Callable[[int], int]) -> None:
    check_sequences(examples(120), fuzz_seed)


@pytest.mark.slow
def test_many_random_sequences_of_verbs(fuzz_seed: int, examples: Callable[[int], int]) -> None:
    check_sequences(examples(800), fuzz_seed)
