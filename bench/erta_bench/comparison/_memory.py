"""Bytes that a cache holds between two steps, measured alike for every project's cache."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from erta_bench.comparison._contender import Contender
from erta_bench.comparison._runner import Prepared, Runner
from erta_bench.setting import CALIBRATION_SEEDS
from erta_framework.sampling import Callback
from erta_framework.session import StepTrace


@contextmanager
def count_only_new() -> Iterator[None]:
    """Within it, `count_live_bytes` counts only tensors that were made since."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def count_live_bytes() -> int:
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
class MemoryWeigher(Callback):
    """Weighs live tensors after two steps of a run, at half and at three quarters of it.

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
            self.most = max(self.most, count_live_bytes())


@dataclass(slots=True)
class MemoryMeter:
    """Bytes that contenders hold, beyond what the pipeline holds without a cache.

    Attributes:
        runner: Runs them.
        prompts: One prompt.
    """

    runner: Runner
    prompts: Sequence[str]
    _plain: dict[int, int] = field(default_factory=dict)
    _held: dict[str, int] = field(default_factory=dict)

    def measure(self, prepared: Prepared) -> int:
        """Bytes a sample that are held between steps beyond those of as many plain steps.

        Measured once a contender: how many calls it makes does not change what it holds.
        """
        name = prepared.contender.name
        if name in self._held:
            return self._held[name]
        steps = prepared.contender.steps(prepared.budget, self.runner.steps)
        if steps not in self._plain:
            scheduler = self.runner.through.default
            plain = Contender(name="plain", group="plain", scheduler=scheduler)
            self._plain[steps] = self._weigh(Prepared(plain, steps), steps)
        # tensors come and go: a few bytes less than plain means none
        self._held[name] = max(0, self._weigh(prepared, steps) - self._plain[steps])
        return self._held[name]

    def _weigh(self, prepared: Prepared, steps: int) -> int:
        """Bytes of the tensors that a run made and that are alive within it."""
        weigher = MemoryWeigher(steps)
        with count_only_new():
            self.runner.run(prepared, self.prompts, CALIBRATION_SEEDS, [weigher])
        return weigher.most
