"""What replayed plans measured, kept in a profile: quality and seconds by network calls.

A profile holds one such front for each unit of predicted errors, so that a budget in dB is never
read off the errors of another planner.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import linear_regression

import numpy as np
import torch
from torch import Tensor

from erta_framework.budgets._measured_tables import (
    FACTS,
    FULL,
    MASKS,
    NUMBERS,
    REMEDY,
    read_count,
    read_tables,
)
from erta_framework.calibration import MEASURED, Profile
from erta_framework.errors import ProfileError
from erta_framework.session import SessionInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredFront:
    """Plans that were replayed on calibration samples, fewest network calls first.

    Attributes:
        steps: Computed steps of each plan, rising.
        refined: Those after a search that replayed them; the same where nothing was refined.
        predicted: What the planner predicted of each, in its own unit.
        psnr: Mean PSNR of each against the target, in dB.
        psnr_std: Deviation over samples.
        refined_psnr: Mean PSNR of the refined plans.
        seconds: Wall seconds of one request under each plan, and last of the full run; NaN where
            they were left out.
        batch: Samples of a request.
        device: Where the seconds were measured; see `device_facts`.
        planner: Name of the policy that planned.
        policies: All policies of the replays.
        spent: Network calls of each branch and sample that measuring took.
        unit: What predicted errors are in, as in `StepSchedule.unit`.
        target: What quality was measured to: the full run or the exact solution.
    """

    steps: tuple[tuple[int, ...], ...]
    refined: tuple[tuple[int, ...], ...]
    predicted: tuple[float, ...]
    psnr: tuple[float, ...]
    psnr_std: tuple[float, ...]
    refined_psnr: tuple[float, ...]
    seconds: tuple[float, ...]
    batch: int
    device: str
    planner: str
    policies: str
    spent: int
    unit: str
    target: str = FULL

    @property
    def calls(self) -> tuple[int, ...]:
        """Network calls of each plan and branch."""
        return tuple(len(steps) for steps in self.steps)

    # ------------------------------------------------------------------ file
    @classmethod
    def of(cls, profile: Profile, unit: str) -> MeasuredFront | None:
        """What a profile holds for errors of this unit, None if nothing was measured.

        Raises:
            ProfileError: Its tables do not fit each other, or a count is none.
        """
        place = f"{MEASURED}{unit}."
        if f"{place}computed" not in profile.statistics:
            return None
        table = read_tables(profile, place)
        facts = {name: profile.provenance.get(f"{place}{name}", "") for name in FACTS}
        masks = {
            name: tuple(tuple(row.nonzero().flatten().tolist()) for row in table[name])
            for name in MASKS
        }
        return cls(
            steps=masks["computed"],
            refined=masks["refined"],
            predicted=tuple(table["predicted"].tolist()),
            psnr=tuple(table["psnr"].tolist()),
            psnr_std=tuple(table["psnr_std"].tolist()),
            refined_psnr=tuple(table["refined_psnr"].tolist()),
            seconds=tuple(table["seconds"].tolist()),
            batch=read_count(profile, facts["batch"]),
            device=facts["device"],
            planner=facts["planner"],
            policies=facts["policies"],
            spent=read_count(profile, facts["spent"]),
            unit=unit,
            target=facts["target"] or FULL,
        )

    def added_to(self, profile: Profile) -> Profile:
        """The profile with this front instead of any it had for the same unit."""
        num_steps = profile.num_steps
        tables: dict[str, Tensor] = {
            name: torch.tensor(getattr(self, name), dtype=torch.float64) for name in NUMBERS
        }
        for name, plans in zip(MASKS, (self.steps, self.refined), strict=True):
            tables[name] = torch.zeros(len(plans), num_steps, dtype=torch.uint8)
            for row, steps in enumerate(plans):
                tables[name][row, list(steps)] = 1
        place = f"{MEASURED}{self.unit}."
        named = {f"{place}{name}": table for name, table in tables.items()}
        facts = {f"{place}{name}": str(getattr(self, name)) for name in FACTS}
        return replace(profile, statistics={**profile.statistics, **named}).with_provenance(**facts)

    # --------------------------------------------------------------- quality
    def calls_for_psnr(self, wanted: float, predicted: Callable[[int], float]) -> int:
        """Fewest network calls whose predicted error promises this PSNR.

        PSNR over the logarithm of the predicted error is interpolated between the measured plans,
        after rises of the error are levelled, so that a larger error never promises more. Nothing
        is extrapolated.

        Args:
            wanted: In dB, the mean over samples.
            predicted: The planner's error for a number of calls.

        Raises:
            ProfileError: More than any measured plan reached.
        """
        best = max(self.psnr)
        if wanted > best:
            raise ProfileError(
                f"psnr {wanted:g} dB to {self.target} is above the {best:.1f} dB of "
                f"{self.calls[-1]} calls, the "
                "most that was measured for this profile; ask for less, or measure more calls with "
                f"--calls: {REMEDY}"
            )
        for calls in range(self.calls[0], self.calls[-1] + 1):
            if self.psnr_of(predicted(calls)) >= wanted:
                return calls
        return self.calls[-1]

    def psnr_of(self, error: float) -> float:
        """PSNR that a predicted error promises; -infinity beyond the worst measured plan."""
        points = level_rises(
            sorted(
                (math.log(max(e, 1e-300)), quality)
                for e, quality in zip(self.predicted, self.psnr, strict=True)
            )
        )
        logs, qualities = zip(*points, strict=True)
        at = math.log(max(error, 1e-300))
        # the error of the worst plan itself must not fall beyond it by rounding
        return float(np.interp(at, logs, qualities)) if at <= logs[-1] + 1e-9 else -math.inf

    # --------------------------------------------------------------- seconds
    @property
    def timed(self) -> bool:
        """Whether it holds seconds."""
        return all(map(math.isfinite, self.seconds))

    def untimed(self) -> MeasuredFront:
        """The same without seconds, for a profile that goes to other machines."""
        return replace(self, seconds=(math.nan,) * len(self.seconds), device="")

    def calls_for_seconds(self, wanted: float, num_steps: int) -> int:
        """Most network calls that a request of so many seconds has time for.

        Raises:
            ProfileError: Not even the fewest measured calls, or more calls were not slower.
        """
        fixed, each = self.seconds_line(num_steps)
        if each <= 0:
            raise ProfileError(
                f"more network calls took no longer when this profile was measured ({self.calls} "
                f"calls, {', '.join(f'{s:.3g}' for s in self.seconds)} s on {self.device}): "
                "something else kept the machine busy; measure again with `erta plan --measure`"
            )
        least = self.calls[0]
        if fixed + each * least > wanted:
            raise ProfileError(
                f"{wanted:g} s is less than the {fixed + each * least:.3g} s of {least} calls, the "
                f"fewest that were measured ({self.device}, batches of {self.batch}); ask for "
                "more, or measure fewer calls with --calls"
            )
        return min(num_steps, math.floor((wanted - fixed) / each + 1e-9))

    def seconds_line(self, num_steps: int) -> tuple[float, float]:
        """Least squares of seconds over network calls: those of no call, and of each.

        The full run, which went first and may have warmed the device up, counts only where a single
        plan was measured.
        """
        x = [float(calls) for calls in (*self.calls, num_steps)]
        y = list(self.seconds)
        if len(self.calls) > 1:
            x.pop()
            y.pop()
        line = linear_regression(x, y)
        return line.intercept, line.slope

    def require_device(self, session: SessionInfo) -> None:
        """Refuse a run whose seconds are not those that were measured.

        Raises:
            ProfileError: Another device, or another number of samples.
        """
        here = device_facts(session.device)
        if here != self.device or session.shape[0] != self.batch:
            raise ProfileError(
                f"a budget in seconds was measured on {self.device} with batches of {self.batch}, "
                f"this run is on {here} with {session.shape[0]}; {REMEDY} here, or ask for calls"
            )


def list_measured_units(profile: Profile) -> list[str]:
    """Units for which a profile holds measured plans, in alphabetical order."""
    end = ".computed"
    names = (name for name in profile.statistics if name.startswith(MEASURED))
    return sorted(name[len(MEASURED) : -len(end)] for name in names if name.endswith(end))


def level_rises(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points `(x, y)`, x rising, with y made falling: neighbours that rise get their common mean.

    Isotonic regression by pooling neighbours: the falling values that are nearest in squares. After
    each point the means of the groups fall.

    Example:
        >>> level_rises([(0.0, 9.0), (1.0, 5.0), (2.0, 7.0)])
        [(0.0, 9.0), (1.0, 6.0), (2.0, 6.0)]
    """
    groups: list[list[float]] = []  # [sum of y, count]
    for _, y in points:
        groups.append([y, 1.0])
        while len(groups) > 1 and groups[-2][0] / groups[-2][1] < groups[-1][0] / groups[-1][1]:
            total, count = groups.pop()
            groups[-1][0] += total
            groups[-1][1] += count
    means = [total / count for total, count in groups for _ in range(int(count))]
    return [(x, y) for (x, _), y in zip(points, means, strict=True)]


def device_facts(device: torch.device) -> str:
    """Name of a device and, for a CPU, torch's threads: what its speed depends on."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    if device.type == "cpu":
        from erta_framework.environment import read_processor_name

        return f"cpu {read_processor_name()}, {torch.get_num_threads()} threads"
    return device.type
