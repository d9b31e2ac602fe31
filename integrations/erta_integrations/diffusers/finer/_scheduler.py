"""`FineScheduler`: stands in for a scheduler, on a finer grid and with second-order steps."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from erta_framework import Schedule
from erta_framework.calibration import divide_steps
from erta_framework.errors import CapabilityError, ConflictError
from erta_framework.sampling import FineSteps
from erta_framework.sampling.solvers import SolverState
from erta_integrations.diffusers.finer._process import REMEDY, SchedulerProcess
from erta_integrations.diffusers.network import find_argument, is_patched
from erta_integrations.diffusers.pipeline import read_schedule


class FineScheduler:
    """A copy of a scheduler that takes many steps for each of its own.

    The copy keeps class and settings, so that a pipeline treats it as before. Its grid has nodes
    between those of the scheduler, and a step is Adams-Bashforth's. The latents are kept in double
    precision between the steps.

    Args:
        scheduler: Of a pipeline; it stays as it is.
        count: Steps for each of its own.

    Attributes:
        twin: The copy.
        schedule: The scheduler's own grid, once a pipeline has set it.

    Raises:
        CapabilityError: What it integrates is not known.
        ConflictError: Policies are attached to it.
    """

    def __init__(self, scheduler: Any, count: int) -> None:
        self._name = type(scheduler).__name__
        if is_patched(scheduler, "step"):
            raise ConflictError(
                f"the scheduler ({self._name}) has policies attached; solve outside that `with`"
            )
        self._process = SchedulerProcess.of(scheduler)
        self._integrator = FineSteps(self._process.least)
        self._count = count
        self.schedule = Schedule((0.0,), (0.0,))
        self._fine = self.schedule
        self.twin = copy.deepcopy(scheduler)
        # pipelines read the signatures of both
        self._set, self._stepped = self.twin.set_timesteps, self.twin.step
        self.twin.set_timesteps = wrap(self._set, self._set_timesteps)
        self.twin.step = wrap(self._stepped, self._step)
        self._begin()

    def _begin(self) -> None:
        self._index = 0
        self._x: Tensor | None = None
        self._state: SolverState = None
        self._kept: list[Tensor] = []

    def latents(self) -> Tensor:
        """Those at the sigmas of `schedule`, `[N, T + 1, C, ...]`.

        Raises:
            CapabilityError: The pipeline made other steps than those of the finer grid.
        """
        if not self._index or self._index != self._fine.num_steps:
            raise CapabilityError(
                f"the pipeline made {self._index} of the {self._fine.num_steps} steps of a finer "
                f"grid of {self._name}, so this request has no exact solution; call it for all of "
                "its steps, from noise on"
            )
        return torch.stack(self._kept, dim=1)

    def _set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        self._set(*args, **kwargs)
        twin, process = self.twin, self._process
        self.schedule = read_schedule(twin)
        nodes = process.nodes(self.schedule, self._name)
        fine = divide_steps(nodes, self._count, process.least)
        self._fine = Schedule(fine, (*map(process.time_of, fine[:-1]), 0.0))
        device = twin.timesteps.device
        twin.timesteps = torch.tensor(self._fine.times[:-1], dtype=torch.float32, device=device)
        if isinstance(getattr(twin, "sigmas", None), Tensor):
            twin.sigmas = torch.tensor(fine, dtype=torch.float32, device=twin.sigmas.device)
        self._begin()

    def _step(self, *args: Any, **kwargs: Any) -> Any:
        output, time, sample = (
            find_argument(name, self._stepped, args, kwargs)
            for name in ("model_output", "timestep", "sample")
        )
        self._check(output, time, sample)
        x = self._widen(sample)
        if self._index == 0:
            self._kept.append(sample.float().cpu())
        moved, self._state = self._integrator.step(
            self._process.form,
            x,
            output.to(x.dtype),
            self._fine.interval(self._index),
            self._state,
        )
        self._index += 1
        self._x = moved
        if getattr(self.twin, "_step_index", None) is not None:
            self.twin._step_index = self._index  # scales the input of the next call
        result = moved.to(sample.dtype)
        if self._index % self._count == 0:
            self._kept.append(moved.float().cpu())
        whole = find_argument("return_dict", self._stepped, args, kwargs)
        return (result,) if whole is False else SchedulerOutput(prev_sample=result)

    def _widen(self, sample: Tensor) -> Tensor:
        """The latents as the last step left them, unless the pipeline has changed them since."""
        wide = torch.float32 if sample.device.type == "mps" else torch.float64
        if self._x is not None and torch.equal(self._x.to(sample.dtype), sample):
            return self._x
        return sample.to(wide)

    def _check(self, output: Tensor, time: Any, sample: Tensor) -> None:
        expected = self._fine.times[self._index] if self._index < self._fine.num_steps else None
        passed = float(time) if not isinstance(time, Tensor) or time.numel() == 1 else expected
        if expected is None or passed is None or abs(passed - expected) > 1e-3 * max(1.0, expected):
            raise CapabilityError(
                f"the pipeline stepped {self._name} at the timestep {passed}, where a finer grid "
                f"has {expected} at step {self._index}, so it has no exact solution; {REMEDY}"
            )
        if output.shape != sample.shape:
            raise CapabilityError(
                f"the output {tuple(output.shape)} is not of the shape of the latents "
                f"{tuple(sample.shape)}, so the exact solution is not known"
            )


def wrap(original: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    """A function with the signature of another."""

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        return instead(*args, **kwargs)

    return call
