"""How long a call took, by both clocks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Seconds(NamedTuple):
    """What a call took.

    Attributes:
        wall: Seconds that passed.
        processor: Seconds of processor time, which other programs disturb less.
    """

    wall: float
    processor: float


def time_call(function: Callable[[], T]) -> tuple[T, Seconds]:
    """The result of a call, and what the call took.

    Example:
        >>> result, took = time_call(lambda: sum(range(1000)))
        >>> result, took.wall > 0
        (499500, True)
    """
    wall, processor = time.perf_counter(), time.process_time()
    result = function()
    return result, Seconds(time.perf_counter() - wall, time.process_time() - processor)
