"""`MagCache`: a skip rule whose schedule follows from a table of magnitude ratios.

The file is long because the rule has twenty settings, one for each published variant of it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from erta_framework import (
    Call,
    Compute,
    Decision,
    Needs,
    Profile,
    Profiler,
    Reuse,
    Seam,
    SessionInfo,
    Step,
    Traits,
    hookimpl,
)
from erta_framework.budgets import StepSchedule
from erta_framework.errors import CapabilityError, InputError, PolicyError
from erta_policies.magcache._profiler import MagCacheProfiler
from erta_policies.magcache._rule import (
    Experts,
    Place,
    Resample,
    Rounding,
    Rule,
    resample_ratios,
    run_errors,
    walk,
)
from erta_policies.magcache._tables import (
    EVERY,
    KIND,
    Tables,
    read_calibrated_ratios,
    read_listed_ratios,
    read_published_ratios,
)
from erta_policies.shared import (
    BudgetedPlanner,
    list_thresholds,
    load_profile,
    require_one_option,
    solve_setting,
)

GENERIC: dict[str, Any] = {
    "threshold": 0.06,
    "max_skips": 2,
    "retention": 0.2,
    "rounding": "floor",
    "strict": False,
    "square_root": False,
    "forbidden": (),
    "largest_change": math.inf,
    "experts": None,
    "boundary": None,
}
"""Where neither the user nor the model says otherwise."""


class MagCache(BudgetedPlanner):
    """Reuses while the residual's predicted change of magnitude stays below `threshold`.

    The ratio of the residual's magnitude at one step to that at the step before is nearly the same
    for every prompt. With the product p of the ratios since the last computed step, the error
    |1 - p| of every reused step is summed up; a step is reused while the sum and the length of the
    run stay within bounds. The schedule is known before sampling: nothing is read back.

    The residual is that of the block stack, so published tables are for `seam="trunk"`. Every
    branch follows its own table. The predictor is core's own, of a flow `x + residual`.
    Where core reuses outputs, a calibrated table holds the ratios of their magnitudes, which is
    ours.

    Source: MagCache, arXiv 2506.09045, and the repository Zehong-Ma/MagCache. Thresholds and
    variants of the rule not given here are those of the model; for other tables `threshold` and
    `max_skips` are the paper's careful mode. `shared`, `resample="consistent"` and the profile are
    ours; so are a budget and that a second network always computes its first step.

    Attributes:
        model: Name of a published table, see `erta_policies.constants.models("magcache")`.
        ratios: A table of your own instead, the first entry 1.
        profile: File or profile of a `MagCacheProfiler` instead.
        branches: Names of the run's branches, in the order of the table's. Given `ratios` then
            alternate between them; empty, they serve every branch.
        threshold: Largest summed error.
        budget: Solve the threshold for this: one of `calls`, `speedup`, `psnr` and `seconds`, of
            the branch that takes most calls. `max_skips` and `retention` stay as they are.
        max_skips: K, the longest run of reused steps.
        retention: Part of the steps at the start that are computed.
        rounding: How their number is rounded.
        strict: Whether the error must stay below the threshold instead of not above it.
        square_root: Whether to take the square root of the ratios, as the paper's evaluation does
            for Wan 2.1 1.3B and Open-Sora.
        forbidden: Entries of the table whose step is always computed; 11 for FLUX.
        largest_change: Largest `|1 - ratio|` of a reused step; 0.06 for FramePack.
        experts: For two networks: `"t2v"` applies `retention` to each, `"i2v"` reuses no step of
            the first.
        high_steps: Steps of the first network.
        boundary: Sigma from which on the second network runs, instead of `high_steps`.
        resample: How the table is fitted to another number of steps.
        shared: Whether the first table decides for all branches.
        any_seam: Whether to use a published table where residuals are not those of the blocks.
        allow: Fingerprint fields of the profile that may differ from the run.

    Raises:
        PolicyError: Not exactly one of `model`, `ratios` and `profile` is given, nothing was
            published for the model, or a setting is out of range.

    Example:
        >>> len(MagCache(model="wan2.1-t2v-1.3b", max_skips=4).plan(50).computed)
        21
    """

    traits = Traits(static=True, decides="branch", memory=Needs(evaluations=1))
    solved_fields: ClassVar[tuple[str, ...]] = ("threshold",)
    exact: ClassVar[bool] = False

    model: str | None = None
    ratios: tuple[float, ...] | None = None
    profile: str | Path | Profile | None = None
    branches: tuple[str, ...] = ()
    threshold: float | None = None
    max_skips: int | None = None
    retention: float | None = None
    rounding: Rounding | None = None
    strict: bool | None = None
    square_root: bool | None = None
    forbidden: tuple[int, ...] | None = None
    largest_change: float | None = None
    experts: Experts | None = None
    high_steps: int | None = None
    boundary: float | None = None
    resample: Resample = "nearest"
    shared: bool = False
    any_seam: bool = False
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        options = ("model=<published table>", "ratios=<your own>", "profile=<file>")
        require_one_option(self, "MagCache", options, missing="no ratios")
        self._settle_budget()
        if self.profile is not None and self.branches:
            raise PolicyError("a profile names its branches itself; drop branches=...")
        least = {"threshold": 0.0, "max_skips": 0, "retention": 0.0, "high_steps": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise PolicyError(f"MagCache({name}={value}): it must be at least {low:g}")
        if self.retention is not None and self.retention > 1.0:
            raise PolicyError(f"MagCache(retention={self.retention}): it is a part of the steps")

    def prepare(self) -> None:
        if self._rule.experts is None:
            self.plan(len(next(iter(self._tables.ratios.values()))))

    def calibrator(self) -> Profiler | None:
        return MagCacheProfiler()

    # ------------------------------------------------------------------ the schedule
    @cached_property
    def _profile(self) -> Profile:
        return load_profile(self, self.profile, (KIND,))

    @cached_property
    def _tables(self) -> Tables:
        if self.model is not None:
            found = read_published_ratios(self.model, self.branches)
        elif self.ratios is not None:
            found = read_listed_ratios(self.ratios, self.branches)
        else:
            found = read_calibrated_ratios(self._profile)
        if not self._setting("square_root", found):
            return found
        rooted = {name: tuple(map(math.sqrt, table)) for name, table in found.ratios.items()}
        return replace(found, ratios=rooted)

    @cached_property
    def _solved(self) -> dict[tuple[int, int | None], Rule]:
        """Rules that keep the budget, by number of steps and of those of the first network."""
        return {}

    def _setting(self, name: str, tables: Tables) -> Any:
        chosen = getattr(self, name)
        return chosen if chosen is not None else tables.settings.get(name, GENERIC[name])

    @cached_property
    def _rule(self) -> Rule:
        chosen = {
            name: self._setting(name, self._tables)
            for name in GENERIC
            if name not in ("square_root", "boundary")
        }
        return Rule(**{**chosen, "forbidden": tuple(chosen["forbidden"])})

    def _walks(self, num_steps: int, high: int | None) -> dict[str, list[tuple[bool, str]]]:
        """For each branch that has a table, whether each step is computed, and why."""
        return self._walked(self._rule_for(num_steps, high), num_steps, high)

    def _walked(
        self, rule: Rule, num_steps: int, high: int | None
    ) -> dict[str, list[tuple[bool, str]]]:
        tables = self._tables
        calls = len(tables.ratios) if tables.interleaved else 1
        walks = {
            name: walk(table, rule, Place(k % calls, calls, high), num_steps, self.resample)
            for k, (name, table) in enumerate(tables.ratios.items())
        }
        return {EVERY: next(iter(walks.values()))} if self.shared else walks

    def _rule_for(self, num_steps: int, high: int | None) -> Rule:
        """The rule, with the threshold that keeps the budget.

        The error of a run of reused steps grows as the run goes on, so every walk ends its runs
        where a sum of `run_errors` passes the threshold: thresholds between two neighbouring sums
        give the same walk, and one for each is tried.
        """
        if self.budget is None:
            return self._rule
        if (num_steps, high) in self._solved:
            return self._solved[num_steps, high]
        profile = None if self.profile is None else self._profile
        calls = self._calls_for(num_steps, profile)
        assert calls is not None
        tables = [
            resample_ratios(t, num_steps, self.resample) for t in self._tables.ratios.values()
        ]
        sums = [error for table in tables for error in run_errors(table, self._rule.max_skips)]

        def count(threshold: float) -> int:
            walks = self._walked(replace(self._rule, threshold=threshold), num_steps, high)
            return max(sum(computed for computed, _ in steps) for steps in walks.values())

        threshold = solve_setting(list_thresholds(sums), count, calls, repr(self))
        return self._solved.setdefault((num_steps, high), replace(self._rule, threshold=threshold))

    def plans(self, num_steps: int) -> dict[str, StepSchedule]:
        """The schedule of each branch; `"all"` where one serves every branch.

        Raises:
            PolicyError: The table spans two networks and `high_steps` is not given.
        """
        rule = self._rule_for(num_steps, self.high_steps)
        return {
            name: StepSchedule.of(
                [i for i, (computed, _) in enumerate(steps) if computed], num_steps, rule.threshold
            )
            for name, steps in self._walked(rule, num_steps, self.high_steps).items()
        }

    def plan(self, num_steps: int) -> StepSchedule:
        """The schedule of the first branch, with those of all where several have a table.

        Its errors are `|1 - p|` of reusing at each step the newest residual; NaN at step 0.

        Example:
            >>> MagCache(ratios=(1.0, 1.01, 1.02, 1.02, 0.7), retention=0.0).plan(5).computed
            (0, 3, 4)
        """
        plans = self.plans(num_steps)
        first = next(iter(plans.values()))
        table = resample_ratios(next(iter(self._tables.ratios.values())), num_steps, self.resample)
        products = [math.prod(table[first.sources[i - 1] + 1 : i + 1]) for i in range(1, num_steps)]
        return replace(
            first,
            errors=(math.nan, *(abs(1.0 - product) for product in products)),
            branches=plans if len(plans) > 1 else {},
        )

    # ------------------------------------------------------------------ the hooks
    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        if self.profile is not None:
            self._profile.require(session, self.allow)
            self._require_device(self._profile, session)
        elif self.model is not None and not self.any_seam and session.seam is not Seam.TRUNK:
            raise CapabilityError(
                f"the table of {self.model!r} is for residuals of the block stack, this run reuses "
                "at the latent seam; attach with seam='trunk', calibrate a profile for this seam, "
                "or accept the difference with any_seam=True"
            )
        walks = self._walks(session.num_steps, self._high(session))
        self._require_branches(walks, session.branches)
        scope = "step" if EVERY in walks else "branch"
        decisions: dict[str, tuple[Decision, ...]] = {
            name: tuple(
                Compute(why, scope) if computed else Reuse(why, scope) for computed, why in steps
            )
            for name, steps in walks.items()
        }
        session.state_of(self, lambda: decisions)

    def _high(self, session: SessionInfo) -> int | None:
        boundary = self._setting("boundary", self._tables)
        if self.high_steps is not None or boundary is None:
            return self.high_steps
        limit = session.time_of(boundary)
        return sum(time >= limit for time in session.times)

    def _require_branches(self, known: Any, branches: tuple[str, ...]) -> None:
        unknown = [name for name in branches if name not in known and EVERY not in known]
        if unknown:
            raise InputError(
                f"{self!r} has tables for the branches {', '.join(known)}, the run calls "
                f"{', '.join(unknown)}; say which is which with branches=[...], or let the first "
                "table decide for all with shared=True"
            )

    @hookimpl
    def decide(self, step: Step, call: Call) -> Decision:
        decisions = step.session.state_of(self, dict[str, tuple[Decision, ...]])
        if EVERY in decisions:
            return decisions[EVERY][step.index]
        self._require_branches(decisions, (call.branch,))
        return decisions[call.branch][step.index]
