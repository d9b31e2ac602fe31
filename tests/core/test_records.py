"""The records: frozen, and the network thunk that runs once."""

from __future__ import annotations

import dataclasses
import inspect
import sys

import pytest
import torch

from erta_framework import Answer, Compute, Interval, Needs, Policy, Reuse, Seam, Step
from erta_framework.errors import PolicyError, ProtocolError
from erta_framework.plugins._policy import to_snake_case
from erta_framework.session import (
    Call,
    Computation,
    FunctionNetwork,
    Memory,
    Session,
    Site,
    StateStore,
)


def test_records_are_frozen(info):
    records = [
        Interval(0, 1.0, 0.5, 1000.0, 500.0),
        Compute("x"),
        Reuse("x"),
        Needs(),
        info(),
        Step(Interval(0, 1.0, 0.5, 1000.0, 500.0), info()),
        Answer(Compute("x"), torch.ones(1), True, None),
    ]
    for record in records:
        name = dataclasses.fields(record)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, name, None)


def test_step_reads_its_interval(info):
    step = Step(Interval(2, 0.5, 0.25, 500.0, 250.0), info(steps=4))
    assert (step.index, step.num_steps) == (2, 4)


def test_default_time_of_sigma(info):
    assert info().time_of(0.25) == 250.0
    assert info(steps=7).num_steps == 7


def test_network_runs_once_and_tells_at_once():
    calls, told = [], []

    def compute():
        calls.append(1)
        return torch.ones(2)

    network = Computation(FunctionNetwork(compute), told.append)
    assert not network.ran
    assert network() is network()
    assert network.ran
    assert len(calls) == 1
    assert len(told) == 1
    assert told[0] is network.output
    assert not network.written
    network().add_(1)
    assert network.written


def test_network_may_be_tried_again_after_a_failure():
    answers = iter([RuntimeError("once"), torch.ones(1)])

    def compute():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    network = Computation(FunctionNetwork(compute))
    with pytest.raises(RuntimeError, match="once"):
        network()
    assert not network.ran
    assert isinstance(network.failure, RuntimeError)
    assert torch.equal(network(), torch.ones(1))


@pytest.mark.parametrize("output", [None, 1.0, (torch.ones(1),), [torch.ones(1)]])
def test_network_gives_tensors(output):
    network = Computation(FunctionNetwork(lambda: output))
    with pytest.raises(ProtocolError, match=f"returned {type(output).__name__}, it must return a"):
        network()
    assert not network.ran


def test_state_is_made_once_for_each_key():
    one, other, made = object(), object(), []
    store = StateStore([one, other])

    def factory():
        made.append(1)
        return [len(made)]

    assert store.get(one, "a", factory) is store.get(one, "a", factory)
    assert store.get(one, "b", factory) == [2]
    assert store.get(other, "a", factory) == [3]
    store.clear()
    assert store.get(one, "a", factory) == [4]


def test_state_is_split_by_network_branch_and_place():
    policy, x = object(), torch.ones(1)
    memory = Memory(StateStore([policy]))

    def call(branch="cond", model="model", path=""):
        compute = Computation(FunctionNetwork(lambda: x))
        return Call(x, Site(model, branch, path), (), Compute("x"), compute, memory=memory)

    states = [
        call().state_of(policy, list),
        call(branch="uncond").state_of(policy, list),
        call(model="second").state_of(policy, list),
        call(path="trunk").state_of(policy, list),
        call(path="blocks.3").state_of(policy, list),
    ]
    assert len({id(state) for state in states}) == 5
    assert call().state_of(policy, list) is states[0]


def test_state_belongs_to_policies_of_the_engine_only():
    owner = object()
    store = StateStore([owner])
    with pytest.raises(PolicyError, match="no policy of this engine; pass self"):
        store.get(object(), "a", list)
    adopted = object()
    store.adopt(adopted)
    assert store.get(adopted, "a", list) == []
    # the store holds what it keeps state for, so that no other object takes its address
    assert sys.getrefcount(adopted) > sys.getrefcount(object())


def test_the_seam_follows_from_the_place():
    places = {"": Seam.LATENT, "trunk": Seam.TRUNK, "blocks.3.attn1": Seam.MODULE}
    assert {path: Site(path=path).seam for path in places} == places
    assert Site("a", "b", "c") == Site("a", "b", "c")
    assert len({Site("a", "b", "c"), Site("a", "b", "c"), Site("a", "b")}) == 2


def test_names():
    class HTTPPolicyV2(Policy):
        pass

    assert HTTPPolicyV2().name == "http_policy_v2"
    assert to_snake_case("ErrorLinearizer") == "error_linearizer"
    assert to_snake_case("ERTACache") == "erta_cache"


def test_the_waist_stays_narrow():
    assert len(dataclasses.fields(Call)) <= 8
    public = {name for name in vars(Policy) if not name.startswith("_")}
    assert len(public) <= 12
    assert list(inspect.signature(Session.ask).parameters)[1:4] == ["site", "x", "network"]
