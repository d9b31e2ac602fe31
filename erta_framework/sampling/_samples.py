"""What sampling prompts gives, and the protocol of everything that samples prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Protocol

from torch import Tensor

from erta_framework.calibration import Profile, Solution
from erta_framework.plugins import Policy
from erta_framework.sampling._text_model import TextModel
from erta_framework.session import Trace, render_strip


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Samples:
    """What `Sampler.sample` gives.

    Attributes:
        samples: `[N, C, ...]` in the order of the prompts, on the CPU.
        prompts: The prompts.
        seeds: Seed of each sample.
        traces: One trace a batch.
        seconds: Wall seconds of the sampling, without encoding prompts.
        emitted: Profiles that profilers emitted, one a batch.
    """

    samples: Tensor
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    traces: tuple[Trace, ...]
    seconds: float
    emitted: tuple[Profile, ...]

    @property
    def network_calls(self) -> int:
        """Network calls that were made, over all batches."""
        return sum(trace.network_calls for trace in self.traces)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.samples.shape))
        reused = sum(trace.reused_calls for trace in self.traces)
        return (
            f"Samples({shape}, {len(self.prompts)} prompts, {self.network_calls} network calls, "
            f"{reused} reused, {self.seconds:.1f} s)"
        )

    def _repr_html_(self) -> str:
        strips = "".join(map(render_strip, self.traces))
        return f"<div>{escape(repr(self))}</div>{strips}"


class TextSampler(Protocol):
    """Samples, solves and calibrates prompts: `Sampler`, or a pipeline of the same model.

    `facts` says in words what samples, for a report: loop, solver or scheduler, and guidance.
    """

    @property
    def facts(self) -> Mapping[str, str]: ...

    def sample(self, model: TextModel, prompts: Sequence[str], *, seed: int = 0) -> Samples: ...

    def solve(
        self, model: TextModel, prompts: Sequence[str], *, seed: int = 0, substeps: int = 8
    ) -> Solution: ...

    def calibrate(
        self,
        model: TextModel,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        profiler: Policy | None = None,
    ) -> Profile: ...
