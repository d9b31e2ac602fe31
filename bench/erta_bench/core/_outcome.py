"""What one row of a comparison measured, and its flat record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from erta_bench.core.report import Row
from erta_framework.metrics import SSIM_WINDOW, psnr, ssim
from erta_framework.sampling import Samples

TWO_AXES = {
    "psnr_fine_mean": "exact",
    "psnr_fine_worst": "worst",
    "psnr_mean": "full",
    "psnr_std": "std",
}
"""Columns of a table: PSNR to the exact solution, its worst sample, and PSNR to the full run."""


@dataclass(slots=True)
class Measurement:
    """What one row measured, seed set by seed set.

    Attributes:
        seconds: Wall seconds of sampling all prompts.
        processor: Processor seconds of the same, which other programs disturb less.
        calls: Network calls of each branch, counted by the engine; a mean over samples.
        work: The work of these, in network calls: where every call is whole it is their number.
        psnr, ssim: `[prompts]` against the full run.
        fine: `[prompts]`, PSNR against the exact solution.
    """

    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)
    psnr: list[Tensor] = field(default_factory=list)
    ssim: list[Tensor] = field(default_factory=list)
    fine: list[Tensor] = field(default_factory=list)

    def add(
        self,
        result: Samples,
        reference: Samples,
        exact: Tensor,
        processor: float,
        branches: int,
        calls: float | None = None,
    ) -> None:
        """Measure one run against the full one and the exact solution.

        Args:
            result: The run.
            reference: The full run of the same prompts from the same noise.
            exact: The exact solution `[prompts, C, ...]` of the same.
            processor: Processor seconds of the run.
            branches: Guidance branches of a step.
            calls: Calls of each branch, where they are not the network calls that were counted.
        """
        self.add_time(result, processor)
        # a rule may decide for each sample, so that a call runs some of them
        through = sum(trace.network_samples for trace in result.traces)
        made = through / (branches * len(result.samples)) if calls is None else calls
        self.calls.append(made)
        self.work.append(made * measure_share(result))
        self.psnr.append(psnr(result.samples, reference.samples))
        self.ssim.append(measure_structure(result.samples, reference.samples))
        self.fine.append(psnr(result.samples, exact))

    def add_time(self, result: Samples, processor: float) -> None:
        """Take the time of one run, and nothing else of it."""
        self.seconds.append(result.seconds)
        self.processor.append(processor)


def make_record(
    name: str,
    outcome: Measurement,
    full: Measurement,
    uniform: Measurement | None,
    facts: Row,
) -> Row:
    """One flat record; PSNR to the full run is None where the samples equal its own.

    Args:
        name: The row's name.
        outcome: What it measured.
        full: What the full run measured; speed-ups are relative to it.
        uniform: What the gain is relative to; None for no gain.
        facts: Further keys, which replace those of the measures.
    """
    quality, structure = torch.cat(outcome.psnr), torch.cat(outcome.ssim)
    gain = quality - torch.cat(uniform.psnr) if uniform is not None else None
    return {
        "name": name,
        "calls": as_whole(average(outcome.calls)),
        "work": average(outcome.work) / average(full.work),
        "seconds": average(outcome.seconds),
        "speedup": average(full.seconds) / average(outcome.seconds),
        "processor_seconds": average(outcome.processor),
        "processor_speedup": average(full.processor) / average(outcome.processor),
        **describe_quality(quality, "psnr"),
        **describe_quality(torch.cat(outcome.fine)),
        "ssim_mean": as_finite(structure.mean()),
        "ssim_std": as_finite(structure.std(correction=0)),
        "gain_mean": None if gain is None else as_finite(gain.mean()),
        "gain_std": None if gain is None else as_finite(gain.std(correction=0)),
        "seeds": len(outcome.psnr),
        "prompts": len(outcome.psnr[0]),
        **facts,
    }


def describe_quality(quality: Tensor, key: str = "psnr_fine") -> Row:
    """Mean, deviation and worst sample of a PSNR, for a record.

    Args:
        quality: `[prompts]`, in dB.
        key: What the keys begin with: `psnr_fine` to the exact solution, `psnr` to the full run.
    """
    return {
        f"{key}_mean": as_finite(quality.mean()),
        f"{key}_std": as_finite(quality.std(correction=0)),
        f"{key}_worst": as_finite(quality.min()),
    }


def measure_structure(samples: Tensor, reference: Tensor) -> Tensor:
    """SSIM of each sample; NaN, which a record holds as None, where frames are too small for it."""
    if min(samples.shape[-2:]) < SSIM_WINDOW:
        return torch.full((len(samples),), torch.nan)
    return ssim(samples, reference)


def measure_share(result: Samples) -> float:
    """The part of the work of its network calls that a run did.

    It is below 1 where places inside the network were reused. The shares of other projects' caches
    are not in the traces.
    """
    through = sum(trace.network_samples for trace in result.traces)
    return sum(trace.work for trace in result.traces) / through if through else 1.0


def average(values: Sequence[float]) -> float:
    """The mean of at least one value."""
    return sum(values) / len(values)


def as_whole(value: float) -> int | float:
    """An int where the value is a whole number; the mean of several seed sets may not be."""
    return int(value) if value.is_integer() else value


def as_finite(value: Tensor) -> float | None:
    """A number, or None where it is infinite or undefined."""
    return value.item() if bool(value.isfinite()) else None


def describe_error(error: BaseException, longest: int, head: int) -> str:
    """Type and first line of an error, shortened in the middle.

    Args:
        error: The error.
        longest: Characters at the most.
        head: How many of them are kept from the beginning; the rest are from the end.

    Example:
        >>> describe_error(ValueError("a" * 50 + " requires velocity"), longest=40, head=14)
        'ValueError: aa...aaaa requires velocity'
    """
    text = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    text = text.removesuffix(": ")
    if len(text) <= longest:
        return text
    return f"{text[:head]}...{text[len(text) - (longest - 3 - head) :]}"
