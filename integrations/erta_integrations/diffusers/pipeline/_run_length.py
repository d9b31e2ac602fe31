"""How many of its steps a pipeline runs, as far as it says so before the first of them."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any

from erta_framework import Schedule


def read_announced(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    """The steps that a progress bar will count, from the arguments of `pipe.progress_bar`."""
    total = args[1] if len(args) > 1 else kwargs.get("total")
    iterated = args[0] if args else kwargs.get("iterable")
    if total is None and isinstance(iterated, Sized):
        total = len(iterated)
    return total if isinstance(total, int) else None


def find_run_steps(pipe: Any, announced: int | None, left: int) -> int:
    """Steps that a request runs, of the `left` that its grid has from its first one on.

    A pipeline that ends early, such as SDXL with `denoising_end`, says so twice: in
    `num_timesteps`, and in the total of its progress bar. Either alone proves nothing: the one may
    be that of an earlier request, and the other counts something else where a scheduler has
    several timesteps for each step. So both must agree.
    """
    kept = getattr(pipe, "_num_timesteps", None)
    ends_early = isinstance(kept, int) and kept == announced and 0 < kept < left
    return announced if ends_early and announced is not None else left


def keep_steps(schedule: Schedule, count: int) -> Schedule:
    """The first `count` steps of a schedule."""
    if count == schedule.num_steps:
        return schedule
    return Schedule(schedule.sigmas[: count + 1], schedule.times[: count + 1])
