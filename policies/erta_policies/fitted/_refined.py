"""`EndToEndProfiler`: a fit whose steps and weights are judged by where the run ends."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor

from erta_framework import Profile, Profiler
from erta_framework.budgets import ListedSteps
from erta_framework.calibration import SampleWith
from erta_framework.errors import PolicyError
from erta_policies.fitted._edge_fit import try_steps
from erta_policies.fitted._end_to_end import find_edges, judge, refine_rows, with_rows
from erta_policies.fitted._full_run import record_full_run
from erta_policies.fitted._gradient import make_differentiate
from erta_policies.fitted._moved_steps import move_steps
from erta_policies.fitted._profiler import FittedProfiler
from erta_policies.fitted._schedule import FittedSchedule
from erta_policies.fitted._table import FittedTable
from erta_policies.fitted._velocity import FittedVelocity

HELD_OUT = 4
"""Every so many samples one is held out."""
LEAST_SAMPLES = 2 * HELD_OUT


class EndToEndProfiler(FittedProfiler):
    """A `FittedProfiler` that moves its steps and its weights, judged by where the run ends.

    Before the fit, `search` sweeps move one computed step at a time, see `move_steps`. Each
    schedule is tried out by a run that fits its weights on the way and asks the network at computed
    steps alone, see `EdgeFit`; the mean logarithm of the samples' errors at the end decides.

    The fit goes step by step. What counts is where the run ends, so the weights then take
    Gauss-Newton steps on the error there, see `refine_rows`. The first round costs about as many
    cached runs as there are weights, five for each computed step; each later one four, and four
    more where the driver and the network let a gradient through. Every fourth sample is held out,
    and says when to stop.

    Source: ours.

    Attributes:
        refine: Most rounds of the refinement.
        search: Most sweeps over the schedule. One costs about one cached run for each computed
            step, since a run with a moved step begins like the one without.

    Raises:
        PolicyError: There are neither rounds nor sweeps; or as `FittedProfiler`.

    Example:
        >>> profiler = EndToEndProfiler(target="exact", search=2, refine=2)
        >>> profiler.tries_before, profiler.tries_out
        (True, True)
    """

    refine: int = 2
    search: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.refine, self.search) < 0 or not (self.refine or self.search):
            raise PolicyError(
                f"{type(self).__name__}(refine={self.refine}, search={self.search}): give 1 or "
                "more rounds or sweeps"
            )
        if self.search and self.start is not None:
            raise PolicyError(
                f"{type(self).__name__} got search={self.search} and start, whose steps are fixed; "
                "give one of them"
            )

    @property
    def tries_before(self) -> bool:
        """Whether the schedule is searched."""
        return self.search > 0

    @property
    def tries_out(self) -> bool:
        """Whether the weights are refined."""
        return self.refine > 0

    def begin(self, sample: SampleWith) -> Profiler:
        """Search the schedule.

        Raises:
            PolicyError: There are too few samples, or the solver has memory.
        """
        goal = record_full_run(sample) if self.solution is None else self.solution
        require_samples(len(goal.latents), "the search of a schedule", "search")
        num_steps = len(goal.sigmas) - 1
        settings = self.settings(one_step=True)

        def measure(steps: tuple[int, ...], *, keep: bool = False) -> float:
            ends = try_steps(sample, goal, settings, steps, keep)
            return float(judge(ends, goal.latents[:, -1]).mean())

        start = tuple(sorted(self.steps(num_steps)))
        steps = move_steps(start, num_steps, measure, self.search)
        found = ListedSteps(steps=steps)
        if self.refine:
            return replace(self, schedule=found, search=0)
        shared = {each.name: getattr(self, each.name) for each in fields(FittedProfiler)}
        return FittedProfiler(**{**shared, "schedule": found})

    def finish(self, profile: Profile, sample: SampleWith) -> Profile:
        """Refine the weights.

        Raises:
            PolicyError: There are too few samples to hold some out.
        """
        goal = sample(()) if self.solution is None else self.solution.latents[:, -1]
        return refine_profile(profile, sample, goal, self.refine)


def refine_profile(profile: Profile, sample: SampleWith, goal: Tensor, rounds: int) -> Profile:
    """Refine the weights of a profile on the samples that it was fitted to.

    Args:
        profile: Of a `FittedProfiler`.
        sample: The samples under policies.
        goal: Where they should end, `[N, C, ...]`.
        rounds: Most Gauss-Newton steps.

    Raises:
        PolicyError: There are too few samples to hold some out.
    """
    require_samples(
        len(goal), f"the refinement, which holds out every {HELD_OUT}th sample", "refine"
    )
    table = FittedTable.of(profile)
    depth = table.settings.velocities
    edges = find_edges(table.computed, len(table.choices), depth)
    held_out = torch.arange(len(goal)) % HELD_OUT == HELD_OUT - 1

    def run(rows: Tensor, *, keep: bool = False) -> Tensor:
        moved = with_rows(profile, rows)
        return sample((FittedSchedule(profile=moved), FittedVelocity(profile=moved)), keep=keep)

    slope = make_differentiate(profile, sample)
    found = refine_rows(table.weigh_steps(), edges, run, goal, held_out, rounds, slope)
    ends = run(found.rows)
    refined = with_rows(profile, found.rows)
    errors = profile.statistics["errors"].clone()
    errors[0] = (ends.double() - goal.double()).square().sum()
    judged = replace(refined, statistics={**refined.statistics, "errors": errors})
    return judged.with_provenance(refinement=str(found))


def require_samples(count: int, what: str, setting: str) -> None:
    """Refuse to judge by too few samples.

    Args:
        count: Samples that there are.
        what: What judges by them.
        setting: The setting that asks for it.

    Raises:
        PolicyError: There are fewer than `LEAST_SAMPLES`.
    """
    if count < LEAST_SAMPLES:
        raise PolicyError(
            f"there are {count} samples for {what}; calibrate on {LEAST_SAMPLES} or more, or with "
            f"{setting}=0"
        )
