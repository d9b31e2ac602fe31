"""PromptTea's codebook: how far the unconditional branch is from the conditional, by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from erta_framework import Profile
from erta_framework.calibration import Entry, ProfileKind, StepSeries
from erta_framework.errors import PolicyError, ProfileError
from erta_policies.constants import read_published

KIND = ProfileKind(
    "codebook_profiler",
    {"difference": Entry(shape="T"), "samples": Entry(shape="T", counts=True)},
    StepSeries("difference", "samples"),
    facts=("branches",),
)


@dataclass(frozen=True, slots=True)
class Codebook:
    """Difference of the branches at each step, and the threshold that was published with it."""

    values: tuple[float, ...]
    threshold: float | None = None

    def at(self, index: int, num_steps: int) -> float:
        """The value at a step; of the nearest one where the schedule has another length.

        Example:
            >>> Codebook((0.3, 0.2, 0.1)).at(1, 2)
            0.1
        """
        if num_steps == len(self.values) or num_steps < 2:
            return self.values[index]
        return self.values[round(index * (len(self.values) - 1) / (num_steps - 1))]


def load_published_codebook(model: str) -> Codebook:
    """Load the published codebook of a model.

    Raises:
        PolicyError: Nothing was published for it, or it has no second branch.
    """
    found = read_published("prompttea", model)
    if "codebook" not in found:
        raise PolicyError(
            f"no codebook was published for {model!r}, which is guided without a second branch; "
            "drop the substitute, or measure one with `erta calibrate --policy branch_substitute`"
        )
    return Codebook(tuple(map(float, found["codebook"])), float(found["codebook_threshold"]))


def read_codebook(profile: Profile) -> Codebook:
    """The mean difference at each step of a profile of `CodebookProfiler`.

    Raises:
        ProfileError: The branches were not compared at some step.
    """
    samples = profile.statistics["samples"]
    absent = (samples == 0).nonzero().flatten().tolist()
    if absent:
        raise ProfileError(
            f"this codebook has no differences of the branches at steps {absent}; calibrate with "
            "guidance at every step, its branches called one after the other"
        )
    return Codebook(tuple((profile.statistics["difference"] / samples).tolist()))


def find_real_steps(codebook: Sequence[float], threshold: float) -> tuple[int, ...]:
    """Find the steps at which the second branch really runs, if every step is computed.

    Example:
        >>> find_real_steps([0.5, 0.1, 0.1, 0.1], 0.25)
        (0, 3)
    """
    total, found = 0.0, []
    for index, difference in enumerate(codebook):
        total += difference
        if index == 0 or not total < threshold:
            found.append(index)
            total = 0.0
    return tuple(found)
