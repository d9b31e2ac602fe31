"""What `compare` takes and gives: methods, and what each of them measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from torch import Tensor

from erta_framework.plugins import Policy
from erta_framework.sampling import Solver
from erta_framework.session import Trace

EQUAL = 0.05
"""Works that differ by no more than this share of them count as equal."""
Clock = Literal["wall", "processor"]


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
        work: What the network did, with trials and parts of it, as a share of the reference's.
        seconds: Wall seconds over all prompts.
        processor_seconds: Seconds of processor time over all prompts, in this process.
        speedup: Seconds of the reference over these, by the clock of the comparison.
        psnr: PSNR of each sample against the reference; empty for the reference.
        ssim: SSIM of each sample against the reference; empty for the reference.
        exact_psnr: PSNR of each sample against the exact solution; empty where there is none.
    """

    name: str
    calls: float
    computed: float
    steps: int
    work: float
    seconds: float
    processor_seconds: float
    speedup: float
    psnr: tuple[float, ...]
    ssim: tuple[float, ...]
    exact_psnr: tuple[float, ...] = ()

    @property
    def psnr_mean(self) -> float | None:
        """Mean PSNR in dB; None for the reference."""
        return _average(self.psnr)

    @property
    def exact_psnr_mean(self) -> float | None:
        """Mean PSNR in dB against the exact solution; None where there is none."""
        return _average(self.exact_psnr)

    @property
    def ssim_mean(self) -> float | None:
        """Mean SSIM; None for the reference."""
        return _average(self.ssim)

    def as_record(self) -> dict[str, object]:
        """A flat record for JSON; a mean that is missing or infinite is None there."""
        each = ("psnr", "ssim", "exact_psnr")
        plain = {key: value for key, value in asdict(self).items() if key not in each}
        means = {f"{name}_mean": getattr(self, f"{name}_mean") for name in each}
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
        clock: The clock of the speed-ups, `"wall"` or `"processor"`.
        exact_note: How exact the exact solution is, or why there is none; empty where none was
            asked for.
    """

    methods: tuple[Method, ...]
    rows: tuple[MethodRow, ...]
    samples: tuple[Tensor, ...]
    traces: tuple[Trace, ...]
    distances: Mapping[str, tuple[float, ...]]
    prompts: tuple[str, ...]
    seed: int
    recorded: int
    clock: Clock = "wall"
    exact_note: str = ""

    @property
    def subject(self) -> int:
        """Position of the method that the report is about; the last one if none is marked."""
        marked = [k for k, method in enumerate(self.methods) if method.subject]
        return marked[0] if marked else len(self.methods) - 1

    def seconds(self, row: MethodRow) -> float:
        """Seconds of a row by the clock of the comparison."""
        return row.processor_seconds if self.clock == "processor" else row.seconds

    def count_calls(self, row: MethodRow) -> float:
        """The work of a row in network calls of each branch: the reference has one a step."""
        return row.work * self.rows[0].steps

    def list_unequal(self) -> list[MethodRow]:
        """Rows with policies whose work is more than 5 % off that of the subject."""
        own = self.rows[self.subject].work
        pairs = zip(self.methods, self.rows, strict=True)
        return [row for m, row in pairs if m.policies and abs(row.work - own) > EQUAL * own]


def _average(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
