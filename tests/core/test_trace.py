"""The trace: measured, summed up, written as JSON."""

from __future__ import annotations

import json

import pytest
import torch

from erta_framework import CFG, Trace
from erta_framework.errors import NonFiniteError
from erta_framework.session import CallTrace, StepTrace


def test_totals_of_a_run(run, reuse_on):
    trace = run([reuse_on(steps=(1, 2, 5))], steps=6, guidance=CFG()).trace
    assert trace.request_id == "toy"
    assert trace.num_steps == 6
    assert trace.network_calls == 6
    assert trace.reused_calls == 6
    assert trace.computed_steps == (0, 3, 4)
    assert [step.computed for step in trace.steps] == [True, False, False, True, True, False]
    assert all(call.seconds >= 0 for call in trace.calls())
    assert [call.branch for call in trace.calls()] == ["cond", "uncond"] * 6


def test_intervals_are_those_that_were_integrated(run):
    trace = run(steps=3).trace
    starts = [step.start for step in trace.steps]
    assert starts[1:] == [step.end for step in trace.steps][:-1]
    assert [step.time for step in trace.steps] == [1000.0 * start for start in starts]


def test_summary(run, reuse_on):
    lines = run([reuse_on(steps=(1, 2, 5))], steps=6, guidance=CFG()).trace.summary().splitlines()
    assert lines[0].startswith(
        "request 'toy': 6 network calls, 6 branch calls reused, 3 of 6 steps computed, "
    )
    assert set(lines[1:]) == {
        "  reused      6  listed",
        "  computed    4  no policy asked to reuse",
        "  computed    2  nothing cached yet",
    }


def test_json(run, reuse_on):
    trace = run([reuse_on(steps=(1,))], steps=3).trace
    data = json.loads(trace.to_json())
    assert data["network_calls"] == 2
    assert data["reused_calls"] == 1
    assert [step["index"] for step in data["steps"]] == [0, 1, 2]
    call = data["steps"][1]["calls"][0]
    assert (call["computed"], call["reason"], call["source"]) == (False, "listed", 0)
    assert "extremes" not in data


def call(index, computed=True, rows=None):
    return CallTrace(index, "cond", "model", computed, "why", None, 0.0, rows)


def test_samples_that_differed_are_summed_up():
    calls = [(call(0),), (call(1, rows=(0, 2)),), (call(2, computed=False),), (call(3, rows=(2,)),)]
    steps = [StepTrace(index, 1.0, 0.0, 1.0, own) for index, own in enumerate(calls)]
    trace = Trace(steps=steps)
    for rows in (3, 2, 1):
        trace.count(torch.zeros(rows, 2))
    assert (trace.network_calls, trace.network_samples, trace.batch) == (3, 6, 3)
    assert "  samples differed: 2, 1, 3 calls each" in trace.summary().splitlines()
    assert json.loads(trace.to_json())["batch"] == 3
    trace.batch = 40
    summed = "  samples differed: 1 to 3 calls, 1.1 on average over 40"
    assert summed in trace.summary().splitlines()
    alike = Trace(steps=steps[:1])
    assert not alike.samples_differed
    assert "differed" not in alike.summary()


def test_first_step_that_is_not_finite_is_named():
    trace = Trace(request_id="r")
    trace.raise_if_nonfinite()
    trace.extremes[3, "cond"] = (torch.tensor(-1.0), torch.tensor(1.0))
    trace.raise_if_nonfinite()
    trace.extremes[4, "uncond"] = (torch.tensor(float("-inf")), torch.tensor(0.0))
    trace.extremes[5, "cond"] = (torch.tensor(float("nan")),) * 2
    with pytest.raises(NonFiniteError, match=r"request 'r'.*branch 'uncond' at step 4"):
        trace.raise_if_nonfinite()


def test_a_later_group_of_samples_that_is_not_finite_is_named():
    trace = Trace(request_id="r")
    low, high, bad = torch.tensor(-1.0), torch.tensor(1.0), torch.tensor(float("nan"))
    trace.extremes[1, "cond"] = (low, high, bad, bad)
    trace.extremes[2, "cond"] = (low, high)
    with pytest.raises(NonFiniteError, match="branch 'cond' at step 1"):
        trace.raise_if_nonfinite()


def test_what_went_wrong_is_in_the_summary():
    trace = Trace(request_id="r", num_steps=4, steps=[StepTrace(0, 1.0, 0.5, 1.0, (call(0),))])
    assert len(trace.summary().splitlines()) == 2
    trace.stopped = "the pipe burst"
    trace.extremes[2, "cond"] = (torch.tensor(0.0), torch.tensor(float("inf")))
    trace.extremes[3, "cond"] = (torch.tensor(0.0), torch.tensor(1.0))
    trace.extremes[3, "uncond"] = (torch.tensor(float("nan")),) * 2
    assert trace.summary().splitlines()[-2:] == [
        "  stopped after 1 steps of 4: the pipe burst",
        "  reused outputs that are not finite: step 2 (cond), step 3 (uncond)",
    ]
    data = json.loads(trace.to_json())
    assert data["stopped"] == "the pipe burst"
    assert data["nonfinite"] == [[2, "cond"], [3, "uncond"]]
