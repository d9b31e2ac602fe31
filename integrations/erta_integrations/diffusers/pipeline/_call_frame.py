"""Who calls: the running `pipe(...)` around a call, and how we notice that it raised."""

from __future__ import annotations

import functools
import gc
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from types import AsyncGeneratorType, CodeType, CoroutineType, FrameType, GeneratorType
from typing import Any

SUSPENDABLE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
WAITS = {
    method.__code__ for method in (Future.result, threading.Thread.start, threading.Thread.join)
}
"""The methods in which a thread waits for a worker, or starts it."""
STARTS = {"run"}
NOTHING: frozenset[CodeType] = frozenset()


@dataclass(frozen=True, slots=True, eq=False)
class CallFrame:
    """The frame that a request belongs to: one running call `pipe(...)`, or a loop by hand.

    A network call belongs to the request of the innermost pipeline call around it. This is seen
    from the stack alone, so it holds in every thread, for pipelines within pipelines and for
    pipelines that share parts. A pipeline that raises between two network calls notifies nobody,
    but its frame is no longer on any stack.

    Attributes:
        frame: A frame of a method `__call__` whose `self` is the pipeline. For a loop by hand, the
            innermost generator or coroutine around it; None if there is none.
        pipe: The pipeline; None for a loop by hand.
        thread: Identifier of the thread.
        callbacks: The user's code that the pipeline calls between its steps.
    """

    frame: FrameType | None
    pipe: Any
    thread: int
    callbacks: frozenset[CodeType] = NOTHING

    @classmethod
    def find(cls) -> CallFrame:
        """Find the innermost pipeline call around the caller; without one, it is a loop by hand."""
        loop, thread = None, threading.get_ident()
        for frame in iter_callers(inspect.currentframe()):
            pipe = find_pipeline(frame)
            if pipe is not None:
                return cls(frame, pipe, thread, frozenset(find_callbacks(frame)))
            if loop is None and frame.f_code.co_flags & SUSPENDABLE:
                loop = frame
        return cls(loop, None, thread)

    @property
    def values(self) -> Mapping[str, Any]:
        """What the pipeline holds in its variables; nothing for a loop by hand."""
        return {} if self.frame is None or self.pipe is None else self.frame.f_locals

    @property
    def eta(self) -> float:
        """The `eta` that the pipeline was called with; 0 where it takes none."""
        found = self.values.get("eta", 0.0)
        return float(found) if isinstance(found, int | float) else 0.0

    @property
    def is_running(self) -> bool:
        """Whether this call has not ended: it is on the stack of a thread, or suspended.

        A loop by hand in no generator has no frame; it may go on as long as its thread lives. A
        generator may go on in another thread than the one in which it began.
        """
        tops = sys._current_frames()
        if self.frame is None:
            return self.thread in tops
        stacks = map(iter_callers, tops.values())
        return any(self.frame in stack for stack in stacks) or self.is_suspended

    @property
    def is_suspended(self) -> bool:
        """Whether the frame is a generator or coroutine that will go on; this takes a while."""
        frame = self.frame
        if frame is None or not frame.f_code.co_flags & SUSPENDABLE:
            return False
        return any(get_suspended(thing) is frame for thing in gc.get_objects())


def get_suspended(thing: Any) -> FrameType | None:
    """The frame in which a generator or coroutine waits; None for anything else or at its end."""
    kind = type(thing)  # not `isinstance`, which asks lazy modules for their class
    if kind is GeneratorType:
        return None if thing.gi_running else thing.gi_frame
    if kind is CoroutineType:
        return None if thing.cr_running else thing.cr_frame
    if kind is AsyncGeneratorType:
        return None if thing.ag_running else thing.ag_frame
    return None


def find_pipeline(frame: FrameType) -> Any:
    """The pipeline of which this is the frame of a call; None for every other frame.

    It is a frame of a method `__call__` whose `self` has a scheduler of timesteps, or components;
    classes do not matter.
    """
    code = frame.f_code
    if code.co_name != "__call__" or not code.co_argcount:
        return None
    owner = frame.f_locals.get(code.co_varnames[0])
    scheduler = getattr(owner, "scheduler", None)
    is_pipeline = hasattr(scheduler, "set_timesteps") or hasattr(type(owner), "components")
    return owner if is_pipeline else None


def find_callbacks(frame: FrameType) -> Iterator[CodeType]:
    """The code of the callbacks among the arguments of a pipeline call."""
    for name, value in frame.f_locals.items():
        while isinstance(value, functools.partial):
            value = value.func
        if name.startswith("callback") and callable(value):
            function = getattr(value, "__func__", value)
            code = getattr(function, "__code__", None)
            code = code or getattr(type(value).__call__, "__code__", None)
            if code is not None:
                yield code


def find_waiting_frames() -> Iterator[FrameType]:
    """The frames in other threads that wait until the work of this thread is done."""
    here = threading.get_ident()
    done: set[int] = {id(threading.current_thread())}
    for frame in iter_callers(sys._getframe(1)):
        if frame.f_code.co_name in STARTS:  # of `concurrent.futures`, with the future as attribute
            done.add(id(getattr(frame.f_locals.get("self"), "future", None)))
    for thread, top in sys._current_frames().items():
        if thread == here:
            continue
        for frame in iter_callers(top):
            if frame.f_code in WAITS and id(frame.f_locals.get("self")) in done:
                yield frame
                break


def iter_callers(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame and its callers, innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def iter_loops(pipe: Any) -> Iterator[Any]:
    """The objects whose `progress_bar` a pipeline opens around its steps.

    This is the pipeline itself, or each block of a modular pipeline that loops.
    """
    if hasattr(pipe, "progress_bar"):
        yield pipe
    blocks = [getattr(pipe, "_blocks", None)]
    while blocks:
        block = blocks.pop()
        if hasattr(block, "progress_bar"):
            yield block
        blocks += getattr(block, "sub_blocks", {}).values()


class WatchedBar:
    """A progress bar that reports an exception which leaves its `with` block.

    Args:
        bar: The progress bar.
        on_error: Called with the exception.
    """

    def __init__(self, bar: Any, on_error: Callable[[BaseException], None]) -> None:
        self._bar, self._on_error = bar, on_error

    def __enter__(self) -> Any:
        return self._bar.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> Any:
        if error is not None:
            self._on_error(error)
        return self._bar.__exit__(kind, error, traceback)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._bar)
