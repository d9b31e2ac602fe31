"""`OpenRequests`: which of the requests that run a network call belongs to."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

from erta_framework import SamplingLoop
from erta_integrations.diffusers.network import Patch
from erta_integrations.diffusers.pipeline._call_frame import (
    find_pipeline,
    find_waiting_frames,
    iter_callers,
)
from erta_integrations.diffusers.pipeline._request import PipelineRequest

PATCH = Patch.__call__.__code__
PATIENCE = 1.0
"""Seconds."""
LOOPS = {SamplingLoop.run.__code__}
"""Loops that are no pipelines and call networks all the same."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a network call comes from.

    Attributes:
        request: The request that it belongs to, if there is one.
        frame: Else the innermost pipeline call around it, if there is one.
        pipe: The pipeline of that call.
        is_by_hand: Whether no pipeline, callback or loop of ours is around it.
    """

    request: PipelineRequest | None = None
    frame: FrameType | None = None
    pipe: Any = None
    is_by_hand: bool = False

    @property
    def who(self) -> str:
        """Who calls, in a word."""
        return "code of your own" if self.pipe is None else type(self.pipe).__name__


class OpenRequests:
    """The open requests of one attachment, by the frame of the pipeline call that makes them.

    Several may be open at a time, in threads or within each other, each with a scheduler of its
    own. One request may be driven by a loop by hand, around the parts of the attached pipeline.
    """

    def __init__(self) -> None:
        self._framed: dict[FrameType, PipelineRequest] = {}
        self._by_hand: PipelineRequest | None = None
        self._callbacks: frozenset[CodeType] = frozenset()

    def __iter__(self) -> Iterator[PipelineRequest]:
        """The open requests, oldest first."""
        yield from list(self._framed.values())
        if self._by_hand is not None:
            yield self._by_hand

    def add(self, request: PipelineRequest) -> None:
        """A request opened."""
        call = request.call
        if call.pipe is None:
            self._by_hand = request
        else:
            assert call.frame is not None
            self._framed[call.frame] = request
        self._collect_callbacks()

    def remove(self, request: PipelineRequest) -> bool:
        """A request closed; whether it was open."""
        if self._by_hand is request:
            self._by_hand = None
            return True
        found = [frame for frame, other in list(self._framed.items()) if other is request]
        for frame in found:
            del self._framed[frame]
        self._collect_callbacks()
        return bool(found)

    def _collect_callbacks(self) -> None:
        codes = [request.call.callbacks for request in list(self._framed.values())]
        self._callbacks = frozenset().union(*codes)

    # ------------------------------------------------------------------------ looking up
    def find(self) -> PipelineRequest | None:
        """The request that the caller's call belongs to; None if it belongs to none."""
        framed, callbacks = self._framed, self._callbacks
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:  # a plain loop: this runs at every network call
            request = framed.get(frame)
            if request is not None:
                return request
            code = frame.f_code
            if code in callbacks or (code.co_name == "__call__" and code is not PATCH):
                break
            frame = frame.f_back
        return self.trace(sys._getframe(1)).request

    def trace(self, start: FrameType | None = None) -> Origin:
        """Find where the call in a frame comes from; without one, that of the caller."""
        inner: FrameType | None = None
        pipe: Any = None
        passed: set[CodeType] = set()
        for frame in iter_callers(start or sys._getframe(1)):
            request = self._framed.get(frame)
            if request is not None:
                theirs = pipe is not None and pipe is not request.pipe
                # what a user's callback calls is no call of the pipeline
                foreign = theirs or not passed.isdisjoint(request.call.callbacks)
                return Origin(None, inner, pipe) if foreign else Origin(request)
            code = frame.f_code
            if code in self._callbacks:
                passed.add(code)
            if pipe is None:
                if code in LOOPS:
                    return Origin()
                pipe = find_pipeline(frame)
                inner = frame if pipe is not None else None
        if pipe is not None:
            return Origin(None, inner, pipe)
        return self._trace_by_hand()

    def _trace_by_hand(self) -> Origin:
        """No pipeline is around the call: a loop by hand, or a thread that a pipeline waits for."""
        request = self._by_hand
        if request is not None:
            call = request.call
            # a generator may go on in another thread than the one in which it began
            inside = call.frame is not None and call.frame in iter_callers(sys._getframe(1))
            if inside or (call.thread == threading.get_ident() and not call.is_suspended):
                return Origin(request, is_by_hand=True)
        for waiting in find_waiting_frames():
            found = self._trace_waiting(waiting)
            if found is not None:
                return Origin(found)
        return Origin(is_by_hand=True)

    def _trace_waiting(self, waiting: FrameType) -> PipelineRequest | None:
        for frame in iter_callers(waiting):
            request = self._framed.get(frame)
            if request is not None or find_pipeline(frame) is not None:
                return self.trace(waiting).request
        by_hand = self._by_hand
        if by_hand is None:
            return None
        top = sys._current_frames().get(by_hand.call.thread)
        return by_hand if waiting in iter_callers(top) else None

    def await_origin(self) -> PipelineRequest | None:
        """The request of a pipeline that waits for this thread; None if none does so in time.

        A pipeline that has started a worker may take a moment until it waits for it.
        """
        last = time.monotonic() + PATIENCE
        while True:
            found = self.trace().request
            if found is not None or time.monotonic() > last:
                return found
            time.sleep(0.001)

    def find_elsewhere(self) -> PipelineRequest | None:
        """A request that runs in another thread, if there is one."""
        here = threading.get_ident()
        running = (r for r in self if r.call.thread != here and r.call.is_running)
        return next(running, None)

    def find_around(self) -> PipelineRequest | None:
        """The request of the innermost pipeline call around the caller, else the newest."""
        framed = (self._framed.get(frame) for frame in iter_callers(sys._getframe(1)))
        found = next((request for request in framed if request is not None), None)
        return found or next(reversed(list(self)), None)
