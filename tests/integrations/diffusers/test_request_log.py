"""A pipeline that stays attached keeps the newest traces, and forgets nothing it was asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import erta_framework as erta
from erta_framework import Profile
from erta_framework.attach import _request_log
from erta_framework.errors import InputError
from erta_integrations.diffusers import attach
from erta_integrations.diffusers._loaded_pipeline import LoadedPipeline
from erta_integrations.diffusers._requests import RequestCaller
from erta_policies.ertacache import ResidualProfiler, SkipPolicy
from tiny_pipelines import FAMILIES

FLUX = FAMILIES["flux"]
SOME = SkipPolicy(every=2)


def test_the_newest_traces_are_kept_and_the_others_counted() -> None:
    pipe = FLUX.build()
    with attach(pipe, [SOME], keep_traces=2) as run:
        for steps in (3, 4, 5, 6):
            FLUX.run(pipe, steps=steps)
            assert run.newest is run.traces[-1]
    assert [trace.num_steps for trace in run.traces] == [5, 6]
    assert [trace.request_id for trace in run.traces] == ["request-2", "request-3"]
    first, *rest = run.summary().splitlines()
    assert first == (
        "2 earlier requests: 5 network calls, 2 branch calls reused; their traces were dropped "
        "(keep_traces=2)"
    )
    assert rest[0].startswith("request 'request-2'")


def test_all_traces_are_kept_on_request_and_many_without() -> None:
    pipe = FLUX.build()
    with attach(pipe, [SOME], keep_traces=None) as run:
        for _ in range(3):
            FLUX.run(pipe, steps=2)
    assert len(run.traces) == 3
    assert "dropped" not in run.summary()
    assert _request_log.KEEP_TRACES >= 100


def test_a_driver_passes_the_number_on() -> None:
    pipe = FLUX.build()
    with erta.attach(pipe, "skip_policy", every=2, keep_traces=1) as run:
        for _ in range(2):
            FLUX.run(pipe, steps=2)
    assert len(run.traces) == 1


@pytest.mark.parametrize("keep", [0, -1])
def test_no_trace_at_all_is_refused(keep: int) -> None:
    with pytest.raises(InputError, match=f"keep_traces is {keep}, it must be at least 1"):
        attach(FLUX.build(), [SOME], keep_traces=keep)


def test_profiles_are_merged_as_they_grow_many(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = FLUX.build()
    with attach(pipe, "residual_profiler") as run:
        for seed in range(5):
            FLUX.run(pipe, steps=4, seed=seed)
    apart = run.profile()
    assert len(run.emitted) == 5
    monkeypatch.setattr(_request_log, "KEEP_PROFILES", 2)
    with attach(pipe, "residual_profiler") as run:
        for seed in range(5):
            FLUX.run(pipe, steps=4, seed=seed)
    assert len(run.emitted) == 2
    merged = run.profile()
    assert merged.samples == apart.samples == 5
    for name, expected in apart.statistics.items():
        torch.testing.assert_close(merged.statistics[name], expected)


def test_profiles_of_different_runs_are_not_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_request_log, "KEEP_PROFILES", 2)
    pipe = FLUX.build()
    with attach(pipe, "residual_profiler") as run:
        for steps in (3, 4, 3, 4, 5):
            FLUX.run(pipe, steps=steps)
    found = {one.fingerprint["num_steps"]: one.samples for one in run.emitted}
    assert found == {"3": 2, "4": 2, "5": 1}


def test_whole_evaluations_keep_every_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a loaded pipeline samples or calibrates is returned whole, however much it is."""
    pipe = FLUX.build()
    loaded = LoadedPipeline(pipe, "here")

    def call(caller: RequestCaller, prompt: str, seed: int, *_: Any) -> Any:
        FLUX.run(pipe, steps=3, seed=seed)
        return torch.zeros(1, 3, 2, 2)

    monkeypatch.setattr(RequestCaller, "call", call)
    monkeypatch.setattr(_request_log.RequestLog.__init__, "__defaults__", (1,))
    prompts = ["a", "b", "c"]
    assert len(loaded.sample(prompts, [SOME]).traces) == 3
    profile: Profile = loaded.calibrate(prompts, ResidualProfiler())
    assert profile.samples == 3
