"""Opens and closes requests, also when a pipeline raises or stops early."""

from __future__ import annotations

import itertools
import logging
import math
import threading
from typing import Any

from torch import Tensor

from erta_framework import Interval, SessionInfo, Trace
from erta_framework.attach import RequestLog
from erta_framework.budgets import Tier
from erta_integrations.diffusers.network import find_channel_dim
from erta_integrations.diffusers.pipeline._call_frame import CallFrame
from erta_integrations.diffusers.pipeline._capabilities import capabilities
from erta_integrations.diffusers.pipeline._checks import refuse_second_request
from erta_integrations.diffusers.pipeline._engines import RequestEngines
from erta_integrations.diffusers.pipeline._fingerprint import (
    describe_guidance,
    describe_network,
    describe_solver,
)
from erta_integrations.diffusers.pipeline._levels import find_level_capabilities
from erta_integrations.diffusers.pipeline._open_requests import OpenRequests
from erta_integrations.diffusers.pipeline._parts import PipelineParts
from erta_integrations.diffusers.pipeline._prediction import read_prediction
from erta_integrations.diffusers.pipeline._request import PipelineRequest
from erta_integrations.diffusers.pipeline._row_branches import find_row_branches
from erta_integrations.diffusers.pipeline._run_length import find_run_steps, keep_steps
from erta_integrations.diffusers.pipeline._schedulers import find_first_index, read_schedule
from erta_integrations.diffusers.pipeline._usage import Usage

log = logging.getLogger(__name__)


class Aborted(Exception):
    """The pipeline stopped before its last step; `on_session_end` gets it as the error."""


class RequestLife:
    """The requests that are open, and what is left of those before.

    A request opens with `set_timesteps`, gets its session at the first network call, and closes
    after its last step. It closes early when the pipeline raises, ends or begins another one.

    Args:
        engines: The policies of each request.
        parts: What is driven.
        log: Gets the requests that are closed.

    Attributes:
        requests: The open requests.
        usage: What was used of the pipeline, and what was not.
    """

    def __init__(self, engines: RequestEngines, parts: PipelineParts, log: RequestLog) -> None:
        self.engines, self.parts, self.log = engines, parts, log
        self.requests = OpenRequests()
        self.usage = Usage(engines.engine, parts)
        self._numbers = itertools.count()
        self._own = threading.local()

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts of the next request of this thread."""
        return getattr(self._own, "prompts", ())

    @prompts.setter
    def prompts(self, texts: tuple[str, ...]) -> None:
        self._own.prompts = texts

    @property
    def newest(self) -> Trace | None:
        """The trace of the request that the caller is in, else of the last one that closed."""
        request = self.requests.find_around()
        if request is not None and request.session is not None:
            return request.session.trace
        return self.log.traces[-1] if self.log.traces else None

    # ------------------------------------------------------------------------ opening
    def open(self, call: CallFrame, scheduler: Any) -> PipelineRequest:
        """Open a request, once `make_room` has closed those before it on this scheduler."""
        pipe = self.parts.pipe if call.pipe is None else call.pipe
        request = PipelineRequest(call, pipe, scheduler, self.engines.tier)
        self.requests.add(request)
        return request

    def make_room(self, call: CallFrame, scheduler: Any) -> None:
        """Close the request before on a scheduler, which can follow only one.

        Raises:
            ConflictError: That request still runs.
        """
        for request in self.requests:
            if request.scheduler is not scheduler:
                continue
            if not can_follow(call, request):
                refuse_second_request(call, request, self.parts.pipe)
            self.fail(request, Aborted("a new request began before the last step of this one"))

    def close_dead(self) -> None:
        """Close the requests whose pipeline raised without telling anybody."""
        for request in self.requests:
            if request.call.pipe is not None and not request.call.is_running:
                self.fail(request, Aborted("the pipeline raised before the last step"))

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
            scheduler = request.scheduler
            as_tensor = timestep if isinstance(timestep, Tensor) else None
            request.schedule = read_schedule(scheduler)
            request.index = find_first_index(scheduler, as_tensor, request.schedule)
            left = request.schedule.num_steps - request.index
            run = find_run_steps(request.pipe, request.announced, left)
            request.schedule = keep_steps(request.schedule, request.index + run)
            request.number = next(self._numbers)
            engine = self.engines.find(request.tier, run)
            request.session = engine.session(self._describe(request, name, latents))
            request.session.__enter__()
        before = request.previous
        start = (None, None) if before is None else (before.end, before.end_time)
        interval = request.schedule.interval(request.index, *start)
        request.branches.begin_step()
        request.session.begin(interval)
        request.in_step, request.timestep = True, interval.time
        request.passed_timestep = timestep

    def end_step(self, request: PipelineRequest, settled: Interval) -> bool:
        """End a step; the last one closes the request. Returns whether it was the last.

        Raises:
            NonFiniteError: A reused output of the request was NaN or infinite.
        """
        request.previous, request.in_step = settled, False
        request.index += 1
        last = request.index == request.schedule.num_steps
        if last:
            self._finish(request, None)
        return last

    def _describe(self, request: PipelineRequest, called: str, latents: Tensor) -> SessionInfo:
        parts, scheduler = self.parts, request.scheduler
        # a network that is not driven may be called first
        name = called if called in parts.networks else next(iter(parts.networks))
        network = parts.networks[name]
        unit = float(getattr(scheduler.config, "num_train_timesteps", math.nan))
        eta = request.call.eta
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
            solver=describe_solver(scheduler, eta),
            prediction=read_prediction(scheduler),
            guidance=describe_guidance(request.pipe),
            capabilities=capabilities(scheduler, eta)
            | find_level_capabilities(scheduler)
            | parts.offered,
            first=request.index,
            request_id=f"request-{request.number}",
            time_of=lambda sigma: sigma * unit,
            prompts=self.prompts,
            row_branches=find_row_branches(request.call, latents),
        )

    # ------------------------------------------------------------------------ closing
    def end_own(self) -> None:
        """Close the caller's request if it is still open at the pipeline's end: it was interrupted.

        Raises:
            NonFiniteError: A reused output of it was NaN or infinite.
        """
        request = self.requests.find()
        if request is not None:
            self._finish(request, Aborted("the pipeline ended before the last step"))

    def _finish(self, request: PipelineRequest, error: Aborted | None) -> None:
        """Close a request whose samples will be returned: they must be finite."""
        self._close(request, error)
        if request.session is not None:
            request.session.trace.raise_if_nonfinite()

    def abort_all(self, why: str) -> None:
        """Close every open request, before its last step."""
        for request in self.requests:
            self.fail(request, Aborted(why))

    def abort_own(self, why: str) -> None:
        """Close the request that the caller's call belongs to, before its last step."""
        self.fail_own(Aborted(why))

    def fail_own(self, error: BaseException) -> None:
        """Close the request that the caller's call belongs to, because of this error."""
        request = self.requests.find()
        if request is not None:
            self._close(request, error)

    def fail(self, request: PipelineRequest, error: BaseException) -> None:
        """Close a request that raised, unless it is closed already."""
        self._close(request, error)

    def _close(self, request: PipelineRequest, error: BaseException | None) -> None:
        if not self.requests.remove(request):
            return
        request.clear()
        self.parts.forget_copies(request.call)
        session = request.session
        if session is None:
            return
        try:
            session.__exit__(type(error) if error else None, error, None)
        finally:
            note_tier(session.trace, request.tier)
            self.log.add(session)
            self.usage.note_request(session.trace)
            log.info("%s: %s", type(request.pipe).__name__, session.trace.headline())


def note_tier(trace: Trace, tier: Tier | None) -> None:
    """Note in a trace that more was computed than its tier promises."""
    made = len(trace.computed_steps)
    if tier is None or tier.calls is None or made <= tier.calls:
        return
    said = f"{made} steps were computed, more than its tier has ({tier.describe()})"
    trace.notes = (*trace.notes, said)
    log.warning("%s: %s", trace.request_id, said)


def can_follow(call: CallFrame, request: PipelineRequest) -> bool:
    """Whether a call may set the timesteps of the scheduler of an open request, and so end it."""
    before = request.call
    if not before.is_running or (call.frame is before.frame and call.frame is not None):
        return True
    if before.pipe is None:  # a loop by hand, which ends without notice
        return request.session is None or (before.thread == call.thread and not before.is_suspended)
    # a `__call__` that calls that of its base class
    return request.session is None and before.pipe is call.pipe and before.thread == call.thread
