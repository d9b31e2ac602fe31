"""Plans, profiles and counts are about the steps that a request runs, not about its whole grid."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

import erta_framework as erta
from erta_framework import Schedule
from erta_framework.errors import ProfileError, ProfileMismatchError
from erta_integrations.diffusers import attach
from erta_integrations.diffusers.pipeline._run_length import (
    find_run_steps,
    keep_steps,
    read_announced,
)
from erta_policies.ertacache import SkipPolicy
from tiny_pipelines import FAMILIES, counted

SDXL = FAMILIES["sdxl"]
SCHEDULERS = {
    "euler": (diffusers.EulerDiscreteScheduler, 10, 8),
    "heun": (diffusers.HeunDiscreteScheduler, 10, None),
}


def build(scheduler: str = "euler") -> Any:
    pipe = SDXL.build()
    pipe.scheduler = SCHEDULERS[scheduler][0]()
    return pipe


# -------------------------------------------------------------------- denoising_end
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_plan_covers_the_steps_that_run(scheduler: str) -> None:
    pipe = build(scheduler)
    full = SDXL.run(pipe, steps=10, denoising_end=0.8)
    with attach(pipe, [SkipPolicy(every=1)]) as run, counted(pipe, SDXL) as made:
        assert torch.equal(SDXL.run(pipe, steps=10, denoising_end=0.8), full)
    ran = len(made)
    assert ran < pipe.scheduler.timesteps.shape[0]
    with attach(pipe, [SkipPolicy(every=3)]) as run, counted(pipe, SDXL) as made:
        SDXL.run(pipe, steps=10, denoising_end=0.8)
    (trace,) = run.traces
    assert (trace.num_steps, len(trace.steps), trace.stopped) == (ran, ran, "")
    assert trace.computed_steps == tuple(sorted({*range(0, ran, 3), ran - 1}))
    assert len(made) == trace.network_calls == len(trace.computed_steps)


def test_a_number_of_calls_is_that_of_the_steps_that_run() -> None:
    pipe = build()
    with attach(pipe, [SkipPolicy(evenly=4)]) as run:
        SDXL.run(pipe, steps=10, denoising_end=0.5)
    assert run.traces[0].network_calls == 4
    with (
        attach(pipe, [SkipPolicy(evenly=6)]) as run,
        pytest.raises(ProfileError, match="6 calls cannot be spread over 5 steps"),
    ):
        SDXL.run(pipe, steps=10, denoising_end=0.5)


def test_a_request_that_ends_early_is_calibrated_and_served() -> None:
    pipe = build()
    with attach(pipe, "residual_profiler") as run:
        SDXL.run(pipe, steps=10, denoising_end=0.8)
    profile = run.profile()
    assert profile.fingerprint["num_steps"] == "8"
    with attach(pipe, "ertacache", profile=profile, calls=4) as run:
        SDXL.run(pipe, steps=10, denoising_end=0.8)
    assert run.traces[0].network_calls == 4
    with (
        attach(pipe, "ertacache", profile=profile, calls=4),
        pytest.raises(ProfileMismatchError, match="num_steps: profile '8' / run '10'"),
    ):
        SDXL.run(pipe, steps=10)


def test_requests_that_end_at_different_steps_follow_each_other() -> None:
    pipe = build()
    with attach(pipe, [SkipPolicy(every=2)]) as run:
        for end in (0.5, None, 0.8):
            SDXL.run(pipe, steps=10, denoising_end=end)
    assert [trace.num_steps for trace in run.traces] == [5, 10, 8]
    assert not any(trace.stopped for trace in run.traces)


class Says:
    """A pipeline that says how many timesteps it keeps."""

    def __init__(self, kept: Any) -> None:
        self._num_timesteps = kept


@pytest.mark.parametrize(
    ("kept", "announced", "expected"),
    [
        (8, 8, 8),  # it ends early
        (10, 10, 10),
        (19, 10, 10),  # a scheduler of two timesteps a step
        (8, 10, 10),  # of an earlier request
        (8, None, 10),
        (None, 8, 10),
        (0, 0, 10),
        (12, 12, 10),
    ],
)
def test_an_early_end_is_believed_where_both_signs_agree(
    kept: int | None, announced: int | None, expected: int
) -> None:
    assert find_run_steps(Says(kept), announced, 10) == expected


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((), {"total": 7}, 7),
        ((None, 7), {}, 7),
        (([1, 2],), {}, 2),
        ((), {"iterable": torch.arange(3)}, 3),
        ((iter([1]),), {}, None),
        ((), {}, None),
    ],
)
def test_what_a_progress_bar_announces(
    args: tuple[Any, ...], kwargs: dict[str, Any], expected: int | None
) -> None:
    assert read_announced(args, kwargs) == expected


def test_a_schedule_keeps_its_first_steps() -> None:
    schedule = Schedule((1.0, 0.5, 0.2, 0.0), (9.0, 5.0, 2.0, 0.0))
    assert keep_steps(schedule, 3) is schedule
    assert keep_steps(schedule, 2) == Schedule((1.0, 0.5, 0.2), (9.0, 5.0, 2.0))


# ------------------------------------------------------------------------- interrupt
def interrupt_after(step: int) -> Any:
    def callback(pipe: Any, index: int, *_: Any) -> dict[str, Any]:
        pipe._interrupt = index == step
        return {}

    return callback


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_an_interrupted_request_is_refused_as_calibration(name: str) -> None:
    family = FAMILIES[name]
    pipe = family.build()
    with attach(pipe, "residual_profiler") as run:
        family.run(pipe, callback_on_step_end=interrupt_after(2))
        why = r"request-0 after 3 steps \(the pipeline ended before the last step\)"
        with pytest.raises(ProfileError, match=why):
            run.profile()
        said = "stopped after 3 steps of 6: the pipeline ended before the last step"
        assert said in run.summary()
        pipe._interrupt = False
        family.run(pipe)
        assert len(run.emitted) == 1
    assert [bool(trace.stopped) for trace in run.traces] == [True, False]


def test_a_request_that_raised_says_why_it_stopped() -> None:
    pipe = FAMILIES["flux"].build()

    def callback(*_: Any) -> dict[str, Any]:
        raise RuntimeError("out of paper")

    with attach(pipe, "residual_profiler") as run:
        with pytest.raises(RuntimeError, match="out of paper"):
            FAMILIES["flux"].run(pipe, callback_on_step_end=callback)
        assert "stopped after 1 steps of 6: out of paper" in run.summary()
        with pytest.raises(ProfileError, match="out of paper"):
            run.profile()


# --------------------------------------------------------------------- image to image
@pytest.mark.parametrize("name", ["flux-img2img", "sd-img2img"])
def test_a_plan_without_a_profile_covers_what_is_left_of_the_grid(name: str) -> None:
    family = FAMILIES[name]
    pipe = family.build()
    steps = 12
    first = family.skipped(steps)
    left = steps - first
    with erta.attach(pipe, [SkipPolicy(evenly=3)]) as run:
        family.run(pipe, steps=steps)
    computed = run.traces[0].computed_steps
    assert len(computed) == 3
    assert (computed[0], computed[-1]) == (first, steps - 1)
    with erta.attach(pipe, "refresh_interval", interval=3, first=2) as run:
        family.run(pipe, steps=steps)
    shifted = tuple(first + step for step in range(left) if step < 1 or step % 3 == 1)
    assert run.traces[0].computed_steps == shifted
    with erta.attach(pipe, [SkipPolicy(every=2)]) as run:
        family.run(pipe, steps=steps)
    expected = {*range(first, steps, 2), steps - 1}
    assert run.traces[0].computed_steps == tuple(sorted(expected))
    assert len(run.traces[0].steps) == left
