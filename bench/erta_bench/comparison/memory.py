"""Bytes that a cache holds between two steps, measured alike for everybody's."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from erta_framework.sampling import Callback
from erta_framework.session import StepTrace


@contextmanager
def only_new() -> Iterator[None]:
    """Within it, `live_bytes` counts tensors that were made since."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def live_bytes() -> int:
    """Bytes of the storage of every tensor that is alive, views counted once."""
    gc.collect()
    held: dict[int, int] = {}
    for thing in gc.get_objects():
        # asking for isinstance would import what lazy modules stand for
        if type(thing) in (Tensor, nn.Parameter):
            storage = thing.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
    return sum(held.values())


@dataclass(slots=True)
class Weigher(Callback):
    """Weighs at the end of two steps, half and three quarters through a run.

    Attributes:
        num_steps: Steps of the run.
        most: The larger of the two.
    """

    num_steps: int
    most: int = 0
    _step: int = field(default=-1, repr=False)

    def on_step(self, step: StepTrace) -> None:
        """Weigh, at two steps."""
        self._step += 1
        if self._step in (self.num_steps // 2, self.num_steps * 3 // 4):
            self.most = max(self.most, live_bytes())
