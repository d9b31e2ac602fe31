"""Opens and closes requests, also when a pipeline raises or stops early."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from erta_framework import Engine, Interval, Profile, SessionInfo, Trace
from erta_integrations.diffusers.network import find_channel_dim
from erta_integrations.diffusers.pipeline._call_frame import CallFrame
from erta_integrations.diffusers.pipeline._capabilities import capabilities
from erta_integrations.diffusers.pipeline._fingerprint import (
    describe_guidance,
    describe_network,
    describe_solver,
)
from erta_integrations.diffusers.pipeline._parts import PipelineParts
from erta_integrations.diffusers.pipeline._request import PipelineRequest
from erta_integrations.diffusers.pipeline._row_branches import find_row_branches
from erta_integrations.diffusers.pipeline._schedulers import find_first_index, read_schedule


class Aborted(Exception):
    """The pipeline stopped before its last step; `on_session_end` gets it as the error."""


class RequestLife:
    """The request that is open, and what is left of those before.

    A request opens with `set_timesteps`, gets its session at the first network call, and closes
    after its last step. It closes early when the pipeline raises, ends or begins another one.

    Args:
        engine: The policies.
        parts: What is driven.

    Attributes:
        traces: One trace per closed request, oldest first.
        emitted: Profiles that profilers emitted.
        prompts: The prompts of the next request.
    """

    def __init__(self, engine: Engine, parts: PipelineParts) -> None:
        self.engine, self.parts = engine, parts
        self.traces: list[Trace] = []
        self.emitted: list[Profile] = []
        self.prompts: tuple[str, ...] = ()
        self._current: PipelineRequest | None = None

    @property
    def newest(self) -> Trace | None:
        """The trace of the open request, else of the last one; None before the first."""
        request = self._current
        if request is not None and request.session is not None:
            return request.session.trace
        return self.traces[-1] if self.traces else None

    # ------------------------------------------------------------------------ opening
    def open(self) -> None:
        """Open a request."""
        frame = CallFrame.find(self.parts.pipe)
        self._current = PipelineRequest(number=len(self.traces), frame=frame)

    def get_running(self) -> PipelineRequest | None:
        """The open request, if the pipeline call that opened it is still running."""
        request = self._current
        if request is not None and request.frame is not None and not request.frame.is_running:
            self.abort("the pipeline raised before the last step")
            return None
        return request

    def begin_step(
        self, request: PipelineRequest, name: str, latents: Tensor, timestep: Any
    ) -> None:
        """Begin a step at its first network call; the first of all starts the session.

        Args:
            request: The request.
            name: The network that is called.
            latents: Its latents.
            timestep: Its timestep, as the pipeline passed it.
        """
        if request.session is None:
            scheduler = self.parts.scheduler
            as_tensor = timestep if isinstance(timestep, Tensor) else None
            request.schedule = read_schedule(scheduler)
            request.index = find_first_index(scheduler, as_tensor, request.schedule)
            request.session = self.engine.session(self._describe(request, name, latents))
            request.session.__enter__()
        before = request.previous
        start = (None, None) if before is None else (before.end, before.end_time)
        interval = request.schedule.interval(request.index, *start)
        request.branches.begin_step()
        request.session.begin(interval)
        request.in_step, request.timestep = True, interval.time
        request.passed_timestep = timestep

    def end_step(self, request: PipelineRequest, settled: Interval) -> bool:
        """End a step; the last one closes the request. Returns whether it was the last."""
        request.previous, request.in_step = settled, False
        request.index += 1
        last = request.index == request.schedule.num_steps
        if last:
            self._close(request, None)
        return last

    def _describe(self, request: PipelineRequest, called: str, latents: Tensor) -> SessionInfo:
        parts = self.parts
        # a network that is not driven may be called first
        name = called if called in parts.networks else next(iter(parts.networks))
        network = parts.networks[name]
        unit = float(getattr(parts.scheduler.config, "num_train_timesteps", math.nan))
        return SessionInfo(
            sigmas=request.schedule.sigmas,
            times=request.schedule.times[:-1],
            shape=tuple(latents.shape),
            dtype=latents.dtype,
            device=latents.device,
            branches=(),
            channel_dim=find_channel_dim(network, tuple(latents.shape)),
            model=describe_network(name, network),
            seam=parts.seam,
            solver=describe_solver(parts.scheduler),
            guidance=describe_guidance(parts.pipe),
            capabilities=capabilities(parts.scheduler) | parts.offered,
            first=request.index,
            request_id=f"request-{request.number}",
            time_of=lambda sigma: sigma * unit,
            prompts=self.prompts,
            row_branches=find_row_branches(request.frame, latents),
        )

    # ------------------------------------------------------------------------ closing
    def abort(self, why: str) -> None:
        """Close a request that did not reach its last step."""
        self.fail_current(Aborted(why))

    def fail_current(self, error: BaseException) -> None:
        """Close the open request, if there is one, because of this error."""
        if self._current is not None:
            self._close(self._current, error)

    def fail(self, request: PipelineRequest, error: BaseException) -> None:
        """Close a request that raised, unless another one has begun since."""
        if self._current is request:
            self._close(request, error)

    def _close(self, request: PipelineRequest, error: BaseException | None) -> None:
        self._current = None
        request.clear()
        session = request.session
        if session is None:
            return
        try:
            session.__exit__(type(error) if error else None, error, None)
        finally:
            self.traces.append(session.trace)
        self.emitted.extend(session.emitted)
