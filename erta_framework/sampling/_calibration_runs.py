"""The runs that a calibration in the own loop consists of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from erta_framework.calibration import NetworkMemory, Profile, Solution, makes_more_runs
from erta_framework.plugins import Policy, Profiler
from erta_framework.sampling._inputs import repeat_batches
from erta_framework.sampling._samples import Samples
from erta_framework.sampling._solve import LatentRecorder
from erta_framework.sampling._text_model import TextModel


class SolvingSampler(Protocol):
    """What calibration needs of a sampler: the own loop, or a pipeline."""

    batch_size: int

    def sample(
        self, model: Any, prompts: Sequence[str], *, seeds: Sequence[int], title: str
    ) -> Samples: ...

    def solve(
        self, model: Any, prompts: Sequence[str], *, seed: int, substeps: int
    ) -> Solution: ...

    def with_policies(self, policies: Sequence[Policy]) -> SolvingSampler: ...


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationRuns:
    """Rounds, solutions and samples of the same calibration samples.

    Attributes:
        sampler: How to sample; its policies are not used.
        model: The model.
        prompts: One a sample.
        seed: Sample k draws its noise from `seed + k`.
        memory: Stands before the network.
    """

    sampler: SolvingSampler
    model: Any
    prompts: Sequence[str]
    seed: int
    memory: NetworkMemory

    def run(self, current: Profiler) -> Sequence[Profile]:
        """One round; what the profiler emitted."""
        self.memory.begin(keep=False)
        return self._sample([current], current.calibration_copies).emitted

    def sample(self, policies: Sequence[Policy], *, keep: bool = False) -> Tensor:
        """The latents at the end under policies, `[N, C, ...]`, in the layout of a solution."""
        self.memory.begin(keep)
        recorder = LatentRecorder(into=[])
        self._sample([*policies, recorder])
        return torch.cat(recorder.into)

    def solve(self, substeps: int) -> Solution:
        """The exact solution of the samples."""
        self.memory.begin(keep=False)
        return self.sampler.solve(self.model, self.prompts, seed=self.seed, substeps=substeps)

    def _sample(self, policies: Sequence[Policy], copies: int = 1) -> Samples:
        twin = self.sampler.with_policies(policies)
        twin.batch_size = self.sampler.batch_size * copies
        names, seeds = repeat_batches(self.prompts, self.seed, self.sampler.batch_size, copies)
        return twin.sample(self.model, names, seeds=seeds, title="calibrating")


@dataclass(frozen=True, slots=True, eq=False)
class LoopSamples:
    """`SampleWithGradients` of the own loop.

    Attributes:
        plain: Runs without gradients.
        within: The same runs within autograd.
    """

    plain: CalibrationRuns
    within: CalibrationRuns

    def __call__(self, policies: Sequence[Policy], *, keep: bool = False) -> Tensor:
        """The latents at the end under policies, `[N, C, ...]`."""
        return self.plain.sample(policies, keep=keep)

    def differentiate(self, policies: Sequence[Policy]) -> Tensor:
        """The same, with the graph to tensors that the policies hold."""
        return self.within.sample(policies)


@contextmanager
def watch_model(
    model: TextModel, memory: NetworkMemory, device: torch.device, profiler: Profiler
) -> Iterator[TextModel]:
    """The model behind a memory, for a profiler that makes more runs than its own rounds."""
    if not makes_more_runs(profiler):
        yield model
    elif isinstance(model, nn.Module):
        model.to(device)
        with memory.watch(model):
            yield model
    else:
        yield cast(TextModel, WatchedModel(model, memory))


class WatchedModel:
    """A model that is no module, behind a memory.

    Args:
        model: The model.
        memory: Answers its calls.
    """

    def __init__(self, model: TextModel, memory: NetworkMemory) -> None:
        self._model, self._memory = model, memory

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)

    def __call__(self, x: Tensor, timestep: Tensor, embeds: Tensor) -> Tensor:
        output: Tensor = self._memory.call(self._model, (x, timestep, embeds), {})
        return output
