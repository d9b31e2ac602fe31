"""The call of a pipeline that a request belongs to, and how it is noticed that it raised."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


class PipelineCall:
    """One running call `pipe(...)`.

    A pipeline that raises between two network calls tells nobody. What its request holds must not
    answer a network call that somebody makes afterwards, so each call is asked whether it is made
    from within.
    """

    __slots__ = ("frame", "thread")

    def __init__(self, frame: FrameType) -> None:
        self.frame = frame
        self.thread = threading.get_ident()

    @classmethod
    def of(cls, pipe: Any) -> PipelineCall | None:
        """The innermost call of this pipeline around the caller; None where it is driven by hand.

        It is known by what runs (a method `__call__` of this very object), not by its class.
        """
        for frame in callers(inspect.currentframe()):
            code = frame.f_code
            called = code.co_name == "__call__" and code.co_argcount > 0
            if called and frame.f_locals.get(code.co_varnames[0]) is pipe:
                return cls(frame)
        return None

    @property
    def running(self) -> bool:
        """Whether the caller is within this call.

        Another thread cannot tell, and counts as within: networks may be run in one.
        """
        if threading.get_ident() != self.thread:
            return True
        frame = inspect.currentframe()  # a plain loop, because this runs at every network call
        while frame is not None and frame is not self.frame:
            frame = frame.f_back
        return frame is not None


def callers(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame and those that called it, innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def loops_of(pipe: Any) -> Iterator[Any]:
    """The objects whose `progress_bar` a pipeline opens around its steps.

    It is the pipeline; of a modular one, each block that loops.
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
    """A progress bar that reports the exception which leaves its `with` block."""

    def __init__(self, bar: Any, failed: Callable[[BaseException], None]) -> None:
        self._bar, self._failed = bar, failed

    def __enter__(self) -> Any:
        return self._bar.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> Any:
        if error is not None:
            self._failed(error)
        return self._bar.__exit__(kind, error, traceback)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._bar)
