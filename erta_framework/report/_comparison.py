"""What `compare` takes and gives: methods, and what each of them measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from torch import Tensor

from erta_framework.plugins import Policy
from erta_framework.sampling import Solver
from erta_framework.session import Trace


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Method:
    """One way to sample.

    Attributes:
        name: A short name.
        detail: What it does, in a sentence.
        steps: Steps of its schedule.
        policies: Its policies.
        solver: Its solver; `FlowEuler()` by default.
        scheduler: Name of its scheduler where a pipeline samples; None is the pipeline's choice.
        subject: Whether this is the method that the report is about.
    """

    name: str
    detail: str
    steps: int
    policies: tuple[Policy, ...] = ()
    solver: Solver | None = None
    scheduler: str | None = None
    subject: bool = False


@dataclass(frozen=True, slots=True)
class MethodRow:
    """What one method measured.

    Attributes:
        name: Name of the method.
        calls: Network calls of one batch, all guidance branches counted.
        computed: Steps in which the network ran.
        steps: Steps of the schedule.
        seconds: Wall seconds over all prompts.
        speedup: Seconds of the reference over these.
        psnr: PSNR of each sample against the reference; empty for the reference.
        ssim: SSIM of each sample against the reference; empty for the reference.
    """

    name: str
    calls: float
    computed: float
    steps: int
    seconds: float
    speedup: float
    psnr: tuple[float, ...]
    ssim: tuple[float, ...]

    @property
    def psnr_mean(self) -> float | None:
        """Mean PSNR in dB; None for the reference."""
        return sum(self.psnr) / len(self.psnr) if self.psnr else None

    @property
    def ssim_mean(self) -> float | None:
        """Mean SSIM; None for the reference."""
        return sum(self.ssim) / len(self.ssim) if self.ssim else None

    def as_record(self) -> dict[str, object]:
        """A flat record for JSON; a mean that is missing or infinite is None there."""
        plain = {key: value for key, value in asdict(self).items() if key not in ("psnr", "ssim")}
        means = {"psnr_mean": self.psnr_mean, "ssim_mean": self.ssim_mean}
        finite = {k: v if v is not None and math.isfinite(v) else None for k, v in means.items()}
        return {**plain, **finite}


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Methods, their samples and what was measured; the first method is the reference.

    Attributes:
        methods: The methods.
        rows: One row a method.
        samples: Samples `[N, C, ...]` of each method.
        traces: The first batch's trace of each method.
        distances: Relative L1 distance of the latents from the reference's after every step, for
            methods on the reference's schedule, averaged over `recorded` samples.
        prompts: The prompts.
        seed: Sample k draws its noise from `seed + k`.
        recorded: Number of samples behind `distances`.
    """

    methods: tuple[Method, ...]
    rows: tuple[MethodRow, ...]
    samples: tuple[Tensor, ...]
    traces: tuple[Trace, ...]
    distances: Mapping[str, tuple[float, ...]]
    prompts: tuple[str, ...]
    seed: int
    recorded: int

    @property
    def subject(self) -> int:
        """Position of the method that the report is about; the last one if none is marked."""
        marked = [k for k, method in enumerate(self.methods) if method.subject]
        return marked[0] if marked else len(self.methods) - 1
