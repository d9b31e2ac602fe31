"""`solve_pipeline`: the nearly exact solution of one request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from erta_framework.calibration import Solution, check_substeps
from erta_integrations.diffusers.finer._scheduler import FineScheduler


def solve_pipeline(
    pipe: Any,
    request: Callable[[], Any],
    substeps: int = 8,
    read: Callable[[Any], Tensor] | None = None,
) -> Solution:
    """The nearly exact solution of what a pipeline samples, to calibrate and to compare with.

    The pipeline runs twice, unmodified, with a stand-in for its scheduler that takes many
    second-order steps for each step of its own. So guidance, layout and noise are the pipeline's.

    Args:
        pipe: A pipeline of diffusers; outside of `attach`.
        request: Calls it, from the same noise each time.
        substeps: Steps for each step of the schedule; even.
        read: Takes the samples `[N, ...]` from what the request returns, where their layout is
            other than that of the latents.

    Raises:
        CapabilityError: What the scheduler integrates is not known, or cannot be divided.
        ConflictError: Policies are attached to the scheduler.
        InputError: `substeps` is not even, or the requests began with other noise.

    Example:
        >>> def request():  # doctest: +SKIP
        ...     return pipe("a cat", generator=torch.Generator().manual_seed(0))
        >>> solution = solve_pipeline(pipe, request)  # doctest: +SKIP
        >>> profiler = FittedProfiler(target="exact", solution=solution)  # doctest: +SKIP
    """
    check_substeps(substeps)
    rough, _ = run_finely(pipe, request, substeps // 2)
    fine, output = run_finely(pipe, request, substeps)
    finished = None if read is None else read(output).cpu()
    sigmas = fine.schedule.sigmas
    return Solution.of_runs(sigmas, rough.latents(), fine.latents(), substeps, finished)


def run_finely(pipe: Any, request: Callable[[], Any], count: int) -> tuple[FineScheduler, Any]:
    """One request with so many steps for each, and what it returns."""
    scheduler = pipe.scheduler
    fine = FineScheduler(scheduler, count)
    pipe.scheduler = fine.twin
    try:
        return fine, request()
    finally:
        pipe.scheduler = scheduler
