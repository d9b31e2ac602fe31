"""`EndToEndProfiler`: a fit whose weights are refined on the error at the end of the run."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from erta_framework import Profile
from erta_framework.calibration import SampleWith
from erta_framework.errors import PolicyError
from erta_policies.fitted._end_to_end import find_edges, refine_rows, with_rows
from erta_policies.fitted._gradient import make_differentiate
from erta_policies.fitted._profiler import FittedProfiler
from erta_policies.fitted._schedule import FittedSchedule
from erta_policies.fitted._table import FittedTable
from erta_policies.fitted._velocity import FittedVelocity

HELD_OUT = 4
"""Every so many samples one is held out."""
LEAST_SAMPLES = 2 * HELD_OUT


class EndToEndProfiler(FittedProfiler):
    """A `FittedProfiler` that moves its weights once more, end to end.

    The fit goes step by step. What counts is where the run ends, so the weights then take
    Gauss-Newton steps on the error there, see `refine_rows`. The first round costs about as many
    cached runs as there are weights, five for each computed step; each later one four, and four
    more where the driver and the network let a gradient through. Every fourth sample is held out,
    and says when to stop.

    Source: ours.

    Attributes:
        refine: Most rounds.

    Raises:
        PolicyError: There are no rounds; or as `FittedProfiler`.

    Example:
        >>> EndToEndProfiler(target="exact", refine=2).tries_out
        True
    """

    refine: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.refine < 1:
            raise PolicyError(f"{type(self).__name__}(refine={self.refine}): give 1 or more rounds")

    @property
    def tries_out(self) -> bool:
        """Yes: the weights are refined on whole runs."""
        return True

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
    if len(goal) < LEAST_SAMPLES:
        raise PolicyError(
            f"the end-to-end refinement holds out every {HELD_OUT}th sample, and there are "
            f"{len(goal)}; calibrate on {LEAST_SAMPLES} or more, or with refine=0"
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
