"""The running call `pipe(...)` of a request, and how we notice that it raised."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


class CallFrame:
    """The stack frame of one running call `pipe(...)`.

    A pipeline that raises between two network calls notifies nobody. A network call that somebody
    makes afterwards must not be answered from the request that failed. So at every network call we
    check that it is made inside this frame.
    """

    __slots__ = ("frame", "thread")

    def __init__(self, frame: FrameType) -> None:
        self.frame = frame
        self.thread = threading.get_ident()

    @classmethod
    def find(cls, pipe: Any) -> CallFrame | None:
        """Find the innermost call of this pipeline around the caller; None if there is none.

        It is a frame of a method `__call__` whose `self` is this object; classes do not matter.
        """
        for frame in iter_callers(inspect.currentframe()):
            code = frame.f_code
            is_call = code.co_name == "__call__" and code.co_argcount > 0
            if is_call and frame.f_locals.get(code.co_varnames[0]) is pipe:
                return cls(frame)
        return None

    @property
    def eta(self) -> float:
        """The `eta` that the pipeline was called with; 0 where it takes none."""
        found = self.frame.f_locals.get("eta", 0.0)
        return float(found) if isinstance(found, int | float) else 0.0

    @property
    def is_running(self) -> bool:
        """Whether the caller is inside this call.

        In another thread this cannot be seen, and is assumed: networks may run in threads.
        """
        if threading.get_ident() != self.thread:
            return True
        frame = inspect.currentframe()  # a plain loop: this runs at every network call
        while frame is not None and frame is not self.frame:
            frame = frame.f_back
        return frame is not None


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
