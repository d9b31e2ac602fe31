"""Reads a scheduler's grid in our terms, finds the place of a step in it, and moves a step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from erta_framework import Interval, Schedule


def read_schedule(scheduler: Any) -> Schedule:
    """Read the scheduler's current grid as sigmas and timesteps; done once per request.

    A scheduler without sigmas gives the noise level sqrt(1 - abar). If it has no abar either, the
    share of the steps that remain is taken.
    """
    times = [float(time) for time in scheduler.timesteps.tolist()]
    sigmas = getattr(scheduler, "sigmas", None)
    bare = sigmas is None and not hasattr(scheduler, "alphas_cumprod")
    if bare and len(times) > 1 and times[-1] == 0.0:
        times.pop()  # such a grid of continuous times also holds the end of its last step
    count = len(times)
    if isinstance(sigmas, Tensor) and len(sigmas) >= count:
        grid = [float(sigma) for sigma in sigmas[: count + 1].tolist()]
    elif hasattr(scheduler, "alphas_cumprod"):
        table = scheduler.alphas_cumprod
        places = [min(max(int(time), 0), len(table) - 1) for time in times]
        grid = [math.sqrt(max(0.0, 1.0 - float(table[place]))) for place in places]
    else:
        grid = [1.0 - index / count for index in range(count)]
    if len(grid) == count:
        final = float(getattr(scheduler, "final_alpha_cumprod", 1.0))
        grid.append(math.sqrt(max(0.0, 1.0 - final)))
    return Schedule(tuple(grid), (*times, 0.0))


def find_first_index(scheduler: Any, timestep: Tensor | None, schedule: Schedule) -> int:
    """Find the step at which a request starts; image to image starts later than 0.

    It is the scheduler's `begin_index`. Without one, it is found from the timestep that the
    pipeline passed to its network, as t, t / 1000 or 1 - t / 1000. If the unit is ambiguous, step
    0 is assumed.
    """
    begin = getattr(scheduler, "begin_index", None)
    if begin is not None:
        return int(begin)
    if timestep is None:
        return 0
    passed = float(timestep.max())  # the timestep of tokens that are clean already is 0
    later = 0
    for unit, offset, tolerance in ((1.0, 0.0, 1e-2), (1e-3, 0.0, 1e-5), (-1e-3, 1.0, 1e-5)):
        apart = [abs(passed - (offset + unit * time)) for time in schedule.times[:-1]]
        nearest = min(range(len(apart)), key=apart.__getitem__)
        if apart[0] <= tolerance:
            return 0
        if apart[nearest] <= tolerance:
            later = later or nearest
    return later


def find_index(scheduler: Any, timestep: Any, schedule: Schedule, expected: int) -> int | None:
    """Find the step of `scheduler.step(_, timestep, _)` without reading a device tensor.

    The place of a view of `scheduler.timesteps` is its offset. Other values are compared, if they
    are on the CPU. None if the step cannot be found, as where a grid repeats a timestep.
    """
    grid = scheduler.timesteps
    if isinstance(timestep, Tensor):
        # a view knows its base, and comparing storages takes microseconds
        if timestep._base is grid or (
            timestep.untyped_storage().data_ptr() == grid.untyped_storage().data_ptr()
        ):
            return int(timestep.storage_offset()) - int(grid.storage_offset())
        if timestep.device.type != "cpu" or timestep.numel() != 1:
            return None
    value = float(timestep)
    if value == schedule.times[expected]:
        return expected
    matches = [i for i, time in enumerate(schedule.times[:-1]) if time == value]
    return matches[0] if len(matches) == 1 else None


def has_same_grid(a: Any, b: Any) -> bool:
    """Whether two schedulers have the same sigmas; to be asked before either is moved."""
    return a.sigmas.shape == b.sigmas.shape and torch.equal(a.sigmas, b.sigmas)


def move_interval(scheduler: Any, settled: Interval) -> None:
    """Write a moved end into the scheduler's grid; in place, because pipelines iterate views."""
    following = settled.index + 1
    scheduler.sigmas[following] = settled.end
    if following < scheduler.timesteps.shape[0]:
        scheduler.timesteps[following] = settled.end_time


def get_prev_sample(result: Any) -> Tensor:
    """The latents in what `scheduler.step` returned."""
    sample = result[0] if isinstance(result, tuple) else result.prev_sample
    assert isinstance(sample, Tensor)
    return sample
