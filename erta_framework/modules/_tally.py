"""FLOPs of a network call while they are counted, without those of policies inside of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch.utils.flop_counter import FlopCounterMode


class Tally:
    """FLOPs of the network call that is measured now.

    Args:
        counter: Counts everything that runs.
    """

    def __init__(self, counter: FlopCounterMode) -> None:
        self._counter = counter
        self._aside = 0

    @property
    def everything(self) -> int:
        """FLOPs so far, those of policies as well."""
        return self._counter.get_total_flops()

    @property
    def total(self) -> int:
        """FLOPs of the network so far."""
        return self.everything - self._aside

    def leave_out(self, flops: int) -> None:
        """These were a policy's own, such as a clustering of what a block returned."""
        self._aside += flops

    @contextmanager
    def current(self) -> Iterator[None]:
        """It counts what runs inside."""
        token = CURRENT.set(self)
        try:
            yield
        finally:
            CURRENT.reset(token)


CURRENT: ContextVar[Tally | None] = ContextVar("tally", default=None)


def count_everything() -> int:
    """FLOPs so far in the network call that is measured now; 0 where none is."""
    tally = CURRENT.get()
    return 0 if tally is None else tally.everything


def leave_out(flops: int) -> None:
    """Of the network call that is measured now, these were a policy's own."""
    tally = CURRENT.get()
    if tally is not None:
        tally.leave_out(flops)
