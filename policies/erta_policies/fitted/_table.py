"""`FittedTable`: schedule and weights that a profile of `FittedProfiler` holds, and its errors."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from erta_framework import Profile
from erta_framework.calibration import Entry, ProfileKind
from erta_framework.errors import ProfileError
from erta_policies.fitted import _features as features
from erta_policies.fitted._cached_run import RUNS
from erta_policies.fitted._normal_equations import (
    FOLDS,
    TOWARD,
    FitSettings,
    StepChoice,
    choose_weights,
)
from erta_policies.shared import refuse_unsolvable

KIND = ProfileKind(
    "fitted_profiler",
    {
        "moments": Entry(shape=f"{FOLDS} T C Q Q", least=None),
        "computed": Entry(shape="T"),
        "depths": Entry(shape="T"),
        "errors": Entry(shape=f"{len(RUNS) - 1}", least=None, finite=False),  # a rule may diverge
        "settings": Entry(shape=f"2 {len(fields(FitSettings))}", least=None),
        "sigmas": Entry(shape="T+1", least=None, monotone="strict"),
        "elements": Entry(shape="", least=1.0, counts=True),
        "batches": Entry(shape="", least=1.0, counts=True),
        "judged": Entry(shape="3", least=None),
        "solution": Entry(shape="3", optional=True),
        "refined": Entry(shape="T C K", least=None, optional=True),
    },
)


@dataclass(frozen=True, slots=True, eq=False)
class FittedTable:
    """A solved profile.

    Attributes:
        computed: Computed steps.
        settings: How the fit was made.
        choices: The combination at each step.
        errors: Mean squared error of the samples that calibration ended with, by run.
        kept: The run that the profile stands for: `fitted`, or a rule that ended nearer to the
            full run.
        batches: How many batches were added up.
        refined: Weights by step that were moved end to end, `[T, C, n + 2]`; None if none were.
        judged: Whether `errors` are those of these weights: of one batch, or of a profile that
            was made with `start`.
    """

    computed: tuple[int, ...]
    settings: FitSettings
    choices: tuple[StepChoice, ...]
    errors: dict[str, float]
    kept: str
    batches: int
    judged: bool
    refined: Tensor | None = None

    @classmethod
    def of(cls, profile: Profile) -> FittedTable:
        """Solve the normal equations of a profile, step by step.

        Raises:
            ProfileError: It was merged from unlike fits, or cannot be solved.
        """
        # every statistic is a sum over samples: over `samples` it is that of one run, and a value
        # that all merged profiles shared comes back exactly
        held = profile.statistics
        samples = profile.samples
        settings = read_settings(profile)
        share = held["computed"] / samples
        computed = tuple(index for index, part in enumerate(share.tolist()) if part > 0)
        if any(float(share[index]) != 1 for index in computed):
            raise ProfileError(
                f"{profile!r} was merged from fits to different schedules; calibrate with one"
            )
        channels = held["moments"].shape[2]
        depths = (held["depths"] / samples).round().int().tolist()
        sigmas = (held["sigmas"] / samples).tolist()
        choices = []
        for index in range(len(share)):
            nodes = [sigmas[step] for step in reversed(computed) if step <= index][: depths[index]]
            moments = held["moments"][:, index]
            if not bool(moments.any()):
                choices.append(make_unfitted_choice(settings, channels))
                continue
            ends = (sigmas[index], sigmas[index + 1])
            with refuse_unsolvable(profile):
                choices.append(choose_weights(moments, settings, nodes, ends, index in computed))
        means = (held["errors"] / held["elements"]).tolist()
        errors = dict(zip(RUNS[1:], means, strict=True))
        # the first of equal ones, so that a rule must be better to be kept
        kept = min(errors, key=lambda name: errors[name])
        batches = int(held["batches"])
        judged = batches == 1 or is_judged_together(held["judged"], batches)
        refined = held["refined"] / samples if "refined" in held else None
        return cls(computed, settings, tuple(choices), errors, kept, batches, judged, refined)

    def weigh_steps(self) -> Tensor:
        """Weights of velocities, latents and displacement by step, `[T, C, n + 2]`."""
        if self.refined is not None:
            return self.refined
        depth = self.settings.velocities
        rows = [
            [features.to_raw_weights(row, depth) for row in choice.weights.tolist()]
            for choice in self.choices
        ]
        return torch.tensor(rows).double()

    def rows(self) -> tuple[Tensor | None, ...]:
        """Weights of velocities, latents and displacement by step, `[C, n + 2]`.

        None leaves a step as it is. All are None where a rule ended nearer to the full run.
        """
        if self.kept != "fitted":
            return (None,) * len(self.choices)
        unchanged = torch.tensor(features.velocity_weights(self.settings.velocities)).double()
        return tuple(
            None if index in self.computed and bool((row == unchanged).all()) else row
            for index, row in enumerate(self.weigh_steps())
        )


def make_judged_statistic(moments: Tensor | None) -> Tensor:
    """The statistic `judged` of one batch, `[3]`: count, a number for the weights, its square.

    The number stands for the weights that the batch ran with; zeros if it fitted its own. In a sum
    over batches, count * squares equals the squared total only if all numbers are the same.

    Args:
        moments: Normal equations of the given weights; None if there were none.
    """
    if moments is None:
        return torch.zeros(3).double()
    shares = (moments / moments.abs().amax().clamp(min=1e-30)).flatten()
    number = float(1 + (shares * torch.arange(len(shares)).double().cos()).sum())
    return torch.tensor([1.0, number, number * number], dtype=torch.float64)


def is_judged_together(judged: Tensor, batches: int) -> bool:
    """Whether every batch ran under weights of an earlier profile, and all under the same."""
    count, total, squares = judged.tolist()
    return int(count) == batches and math.isclose(total * total, squares * count, rel_tol=1e-9)


def make_unfitted_choice(settings: FitSettings, channels: int) -> StepChoice:
    """A step without statistics, which is computed and left as it is."""
    row = torch.tensor(features.velocity_weights(settings.velocities)).double()
    return StepChoice("velocity", row.expand(channels, -1), 0.0)


def require_judged(who: str, table: FittedTable) -> None:
    """Refuse a sum of several batches whose weights no run has used.

    Raises:
        ProfileError: Says how to judge it.
    """
    if not table.judged:
        raise ProfileError(
            f"{who} got a profile added up from {table.batches} batches, each with weights of its "
            "own; no run has used those of the sum, so its errors are not theirs: calibrate the "
            "same samples once more with FittedProfiler(start=...), or with judge: true"
        )


def read_settings(profile: Profile) -> FitSettings:
    """The settings of all fits that were merged into a profile.

    Raises:
        ProfileError: They differ, or are not those of the sums beside them.
    """
    mean, square = profile.statistics["settings"] / profile.samples
    if not torch.allclose(mean * mean, square, rtol=1e-9, atol=0.0):
        raise ProfileError(
            f"{profile!r} was merged from fits with different settings; calibrate with the same"
        )
    settings = FitSettings.of([float(f"{value:.12g}") for value in mean.tolist()])
    quantities = settings.velocities + features.EXTRA + features.TARGETS
    held = profile.statistics["moments"].shape[-1]
    if settings.velocities < 1 or held != quantities or not 0 <= settings.toward < len(TOWARD):
        raise ProfileError(
            f"{profile!r} holds products of {held} quantities, its settings say {settings}; "
            "calibrate again"
        )
    return settings
