"""What one row of a comparison measured against the full run, and its flat record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from erta_bench.core.report import Row
from erta_framework.metrics import psnr, ssim
from erta_framework.sampling import Samples


@dataclass(slots=True)
class Outcome:
    """What one row measured, seed set by seed set.

    Attributes:
        seconds: Wall seconds of sampling all prompts.
        processor: Processor seconds of the same, which other programs disturb less.
        calls: Network calls of each branch, counted by the engine.
        psnr, ssim: `[prompts]` against the full run.
    """

    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)
    psnr: list[Tensor] = field(default_factory=list)
    ssim: list[Tensor] = field(default_factory=list)

    def add(
        self,
        result: Samples,
        reference: Samples,
        processor: float,
        branches: int,
        calls: float | None = None,
    ) -> None:
        """Measure one run against the full one; `calls` where the number of calls is not it."""
        self.time(result, processor)
        made = result.network_calls / (branches * len(result.traces))
        self.calls.append(made if calls is None else calls)
        self.psnr.append(psnr(result.samples, reference.samples))
        self.ssim.append(ssim(result.samples, reference.samples))

    def time(self, result: Samples, processor: float) -> None:
        """Take the time of one run."""
        self.seconds.append(result.seconds)
        self.processor.append(processor)


def record(
    name: str,
    outcome: Outcome,
    full: Outcome,
    uniform: Outcome | None,
    facts: Row,
) -> Row:
    """One flat record; PSNR is None where the samples equal the full run's."""
    quality, structure = torch.cat(outcome.psnr), torch.cat(outcome.ssim)
    gain = quality - torch.cat(uniform.psnr) if uniform is not None else None
    return {
        "name": name,
        "calls": whole(average(outcome.calls)),
        "seconds": average(outcome.seconds),
        "speedup": average(full.seconds) / average(outcome.seconds),
        "processor_seconds": average(outcome.processor),
        "processor_speedup": average(full.processor) / average(outcome.processor),
        "psnr_mean": finite(quality.mean()),
        "psnr_std": finite(quality.std(correction=0)),
        "ssim_mean": finite(structure.mean()),
        "ssim_std": finite(structure.std(correction=0)),
        "gain_mean": None if gain is None else finite(gain.mean()),
        "gain_std": None if gain is None else finite(gain.std(correction=0)),
        "seeds": len(outcome.psnr),
        "prompts": len(outcome.psnr[0]),
        **facts,
    }


def average(values: Sequence[float]) -> float:
    """Their mean."""
    return sum(values) / len(values)


def whole(value: float) -> int | float:
    """A whole number where it is one: calls may differ between seed sets."""
    return int(value) if value.is_integer() else value


def finite(value: Tensor) -> float | None:
    """A number, or None where it is infinite or undefined."""
    return value.item() if bool(value.isfinite()) else None
