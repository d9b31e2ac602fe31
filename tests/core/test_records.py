"""The records: frozen, and the network thunk that runs once."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from erta_framework import Answer, Compute, Interval, Needs, Policy, Reuse, Seam, Step
from erta_framework.errors import ProtocolError
from erta_framework.plugins._policy import snake_case
from erta_framework.session import Call
from erta_framework.session._records import Network, StateStore


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

    network = Network(compute, told.append)
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

    network = Network(compute)
    with pytest.raises(RuntimeError, match="once"):
        network()
    assert not network.ran
    assert isinstance(network.failure, RuntimeError)
    assert torch.equal(network(), torch.ones(1))


@pytest.mark.parametrize("output", [None, 1.0, (torch.ones(1),), [torch.ones(1)]])
def test_network_gives_tensors(output):
    network = Network(lambda: output)
    with pytest.raises(ProtocolError, match=f"returned {type(output).__name__}, it must return a"):
        network()
    assert not network.ran


def test_state_is_made_once_for_each_key():
    store, made = StateStore(), []

    def factory():
        made.append(1)
        return [len(made)]

    one, other = object(), object()
    assert store.get(one, "a", factory) is store.get(one, "a", factory)
    assert store.get(one, "b", factory) == [2]
    assert store.get(other, "a", factory) == [3]
    store.clear()
    assert store.get(one, "a", factory) == [4]


def test_state_is_split_by_network_branch_and_seam():
    store, x = StateStore(), torch.ones(1)

    def call(branch="cond", model="model", seam=Seam.LATENT):
        network = Network(lambda: x)
        return Call(x, branch, model, seam, (), Compute("x"), network, {}, store)

    policy = object()
    states = [
        call().state_of(policy, list),
        call(branch="uncond").state_of(policy, list),
        call(model="second").state_of(policy, list),
        call(seam=Seam.TRUNK).state_of(policy, list),
    ]
    assert len({id(state) for state in states}) == 4
    assert call().state_of(policy, list) is states[0]


def test_names():
    class HTTPPolicyV2(Policy):
        pass

    assert HTTPPolicyV2().name == "http_policy_v2"
    assert snake_case("ErrorLinearizer") == "error_linearizer"
    assert snake_case("ERTACache") == "erta_cache"
