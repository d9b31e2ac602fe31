"""`ERTACache`: the paper as a recipe over four parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from erta_framework import Policy, Profile, Profiler
from erta_framework.budgets import as_planner
from erta_policies.ertacache._adjuster import TimestepAdjuster
from erta_policies.ertacache._linearizer import ErrorLinearizer
from erta_policies.ertacache._profiler import ResidualProfiler
from erta_policies.ertacache._skip import SkipPolicy
from erta_policies.shared import BudgetedRecipe, require_one_option


class ERTACache(BudgetedRecipe):
    """Error-rectified, timestep-adjusted caching (ERTACache, arXiv 2508.21091) as a recipe.

    Stands for `SkipPolicy`, core's own reuse, `TimestepAdjuster` and `ErrorLinearizer`, all on one
    profile of a `ResidualProfiler`. Each part may be switched off (`False`), kept (`True`) or
    swapped for another policy; a swapped part with an empty `profile` gets this one's, and its
    `allow`. The paper is known to us from secondary sources, without its code. Each part says what
    is the paper's and what is our reading.

    The paper is about velocities of flows, whose residual it reuses. For networks that predict
    noise, a clean sample or v, the output takes the residual's place in all parts, which is ours:
    there the schedule follows the error of the reused output, and the line is fitted to it.

    Attributes:
        profile: File or profile of a `ResidualProfiler`.
        budget: What a request may cost, or how good it must be: one of `calls`, `speedup`, `psnr`
            and `seconds`; lambda is solved for it.
        calls: Network calls of each branch; lambda is solved for it.
        threshold: lambda, instead of `calls`.
        skip: Another skip policy instead of the offline schedule.
        predictor: Another predictor of reused steps; else core's own.
        adjuster: Whether to adjust timesteps; off by default, see the measured ablation.
        linearizer: Whether to correct reused outputs; fitted to residual reuse.
        allow: Fingerprint fields of the profile that may differ from the run.

    Raises:
        PolicyError: None or several of `budget`, `calls`, `threshold` and `skip` are given.

    Example:
        >>> policy = ERTACache(profile="wan.safetensors", calls=25)
        >>> [part.name for part in policy.parts()]
        ['skip_policy', 'error_linearizer']
    """

    solved_fields: ClassVar[tuple[str, ...]] = ("threshold", "calls")

    profile: str | Path | Profile | None = None
    calls: int | None = None
    threshold: float | None = None
    skip: Policy | None = None
    predictor: bool | Policy = True
    adjuster: bool | Policy = False
    linearizer: bool | Policy = True
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        options = (
            "budget={calls: 20} (or speedup, psnr, seconds)",
            "calls=<network calls>",
            "threshold=<lambda>",
            "skip=<policy>",
        )
        require_one_option(self, "ERTACache", options, missing="no schedule")
        self._settle_budget()

    def calibrator(self) -> Profiler | None:
        return ResidualProfiler()

    def with_calls(self, calls: int) -> Self | None:
        """The same recipe for a number of network calls, with its own rule or the given one."""
        if self.skip is None:
            return super().with_calls(calls)
        planner = as_planner(self.skip)
        other = None if planner is None else planner.with_calls(calls)
        return dataclasses.replace(self, skip=other) if isinstance(other, Policy) else None

    def parts(self) -> Sequence[Policy]:
        skip = self.skip or SkipPolicy(
            profile=self.profile,
            budget=self.budget,
            calls=self.calls,
            threshold=self.threshold,
            allow=self.allow,
        )
        chosen = [
            self._with_profile(skip),
            self._with_profile(self.predictor) if isinstance(self.predictor, Policy) else None,
            self._part(self.adjuster, TimestepAdjuster(allow=self.allow)),
            self._part(self.linearizer, ErrorLinearizer(allow=self.allow)),
        ]
        return tuple(part for part in chosen if part is not None)

    def _part(self, choice: bool | Policy, default: Policy) -> Policy | None:
        if choice is False:
            return None
        return self._with_profile(default if choice is True else choice)

    def _with_profile(self, part: Policy) -> Policy:
        empty = getattr(part, "profile", self) is None and getattr(part, "phi", None) is None
        if not empty or self.profile is None:
            return part
        inherited: dict[str, Any] = {"profile": self.profile}
        if getattr(part, "allow", self.allow) == ():
            inherited["allow"] = self.allow
        return dataclasses.replace(part, **inherited)
