"""What a profile of `FittedProfiler` says: schedule, weights of each step, and how it compares."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from erta_framework import Profile
from erta_framework.errors import ProfileError
from erta_policies.fitted import features
from erta_policies.fitted.march import RUNS
from erta_policies.fitted.moments import Choice, Settings, choose

KIND = "fitted_profiler"


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A profile, solved.

    Attributes:
        computed: Computed steps.
        settings: How the fit was made.
        choices: What is done at each step.
        errors: Mean squared error of the samples that calibration ended with, by run.
        kept: The run that the profile stands for: `fitted`, or a rule that ended nearer.
        batches: How many batches were added up.
        judged: Whether `errors` are those of these weights: of one batch, or of a profile that
            was made with `start`.
    """

    computed: tuple[int, ...]
    settings: Settings
    choices: tuple[Choice, ...]
    errors: dict[str, float]
    kept: str
    batches: int
    judged: bool

    @classmethod
    def of(cls, profile: Profile) -> Table:
        """Solve the normal equations of a profile, step by step.

        Raises:
            ProfileError: It was merged from unlike fits.
        """
        held = profile.statistics
        samples = profile.samples
        settings = shared_settings(profile)
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
            choices.append(
                choose(
                    held["moments"][:, index],
                    settings,
                    nodes,
                    (sigmas[index], sigmas[index + 1]),
                    index in computed,
                )
                if bool(held["moments"][:, index].any())
                else unfitted(settings, channels)
            )
        means = (held["errors"] / held["elements"]).tolist()
        errors = dict(zip(RUNS[1:], means, strict=True))
        # the first of equal ones, so that a rule must be better to be kept
        kept = min(errors, key=lambda name: errors[name])
        batches = int(held["batches"])
        judged = batches == 1 or judged_together(held["judged"], batches)
        return cls(computed, settings, tuple(choices), errors, kept, batches, judged)

    def rows(self) -> tuple[Tensor | None, ...]:
        """Weights of velocities, latents and displacement, `[C, n + 2]`; None changes nothing.

        Where a rule ended nearer to the full run than the fit, there are none.
        """
        depth = self.settings.velocities
        if self.kept != "fitted":
            return (None,) * len(self.choices)
        found: list[Tensor | None] = []
        for index, choice in enumerate(self.choices):
            same = index in self.computed and choice.name == "velocity"
            rows = [features.raw_weights(row, depth) for row in choice.weights.tolist()]
            found.append(None if same else torch.tensor(rows).double())
        return tuple(found)


def judged_by(moments: Tensor | None) -> Tensor:
    """The statistic `judged` of one batch: none, or one with a number that tells these weights.

    Its square comes along, so that a sum tells whether all had the same.
    """
    if moments is None:
        return torch.zeros(3).double()
    shares = (moments / moments.abs().amax().clamp(min=1e-30)).flatten()
    number = float(1 + (shares * torch.arange(len(shares)).double().cos()).sum())
    return torch.tensor([1.0, number, number * number], dtype=torch.float64)


def judged_together(judged: Tensor, batches: int) -> bool:
    """Whether every batch ran under weights of an earlier profile, and all under the same."""
    count, total, squares = judged.tolist()
    return int(count) == batches and math.isclose(total * total, squares * count, rel_tol=1e-9)


def unfitted(settings: Settings, channels: int) -> Choice:
    """A step without statistics, which is computed and left as it is."""
    row = torch.tensor(features.held(settings.velocities)).double()
    return Choice("velocity", row.expand(channels, -1), 0.0)


def require_judged(who: str, table: Table) -> None:
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


def shared_settings(profile: Profile) -> Settings:
    """The settings of all fits that were merged into a profile.

    Raises:
        ProfileError: They differ.
    """
    mean, square = profile.statistics["settings"] / profile.samples
    if not torch.allclose(mean * mean, square, rtol=1e-9, atol=0.0):
        raise ProfileError(
            f"{profile!r} was merged from fits with different settings; calibrate with the same"
        )
    digits = [float(f"{value:.12g}") for value in mean.tolist()]
    return Settings.of(digits)
