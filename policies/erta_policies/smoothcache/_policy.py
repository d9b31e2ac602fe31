"""`SmoothCache`: attention and MLP outputs are reused by a schedule for each component."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from functools import cached_property

from erta_framework import Policy, Profile, Seam, SessionInfo, Step, Traits, hookimpl
from erta_framework.errors import PolicyError
from erta_framework.modules import (
    KEEP,
    SKIP,
    Action,
    Parts,
    Place,
    ReuseKept,
    Select,
    Selection,
)
from erta_policies.at import divide_places
from erta_policies.shared import (
    ROWS,
    BudgetLike,
    PlanBudget,
    ProfileSource,
    find_newest,
    list_thresholds,
    load_profile,
    require_match,
    require_one_option,
    solve_setting,
)
from erta_policies.smoothcache._profiler import KIND, SmoothCacheProfiler, name_component
from erta_policies.smoothcache._schedule import (
    PUBLISHED,
    ComponentSchedule,
    count_work,
    plan_all,
    read_errors,
    share_costs,
)

NEWEST = ReuseKept()


class SmoothCache(Policy):
    """Reuses attention and MLP outputs for as long as they hardly changed in calibration runs.

    Each component, such as every `attn1` or every `ff`, has a schedule of its own: the steps at
    which its modules run. It is made from a profile and a threshold, or given. The block adds a
    reused output with the gate of the current step. A component without a schedule runs always. A
    module that only feeds another one is left out where that is reused, see `At`.

    Source: SmoothCache, arXiv 2411.10510, and its code (Roblox/SmoothCache). The budget is ours.

    Attributes:
        profile: File or profile of a `SmoothCacheProfiler`.
        threshold: Largest mean relative change that is reused; with a profile.
        budget: Instead of the threshold: `work`, in network calls' worth of each branch.
        schedule: Instead of a profile, 0 or 1 for each step by component: the name of a module,
            such as `attn1`, or a kind of place, such as `attention`.
        published: Instead of a profile, the name of a schedule that the authors ship.
        sites: Which modules.
        allow: Fingerprint fields of the profile that may differ from the run.

    Raises:
        PolicyError: Not exactly one of `profile`, `schedule` and `published`; a setting that does
            not belong to it, or is out of range; in the first step, where a component is none.

    Example:
        >>> smooth = SmoothCache(schedule={"attn": (1, 0, 1, 0), "mlp": (1, 1, 0, 1)})
        >>> smooth.keeps()
        1
    """

    profile: ProfileSource | None = None
    threshold: float | None = None
    budget: BudgetLike = None
    schedule: Mapping[str, tuple[int, ...]] | None = None
    published: str | None = None
    sites: Select = field(default_factory=lambda: Select(kind=("attention", "cross", "mlp")))
    allow: tuple[str, ...] = ()

    traits = Traits(static=True, seams=frozenset({Seam.MODULE}))

    def __post_init__(self) -> None:
        budget = PlanBudget.of(self.budget)
        object.__setattr__(self, "budget", budget)
        options = ("profile=<profile>", "schedule={component: [1, 0, ...]}", "published=<name>")
        require_one_option(self, "SmoothCache", options, "no schedule")
        wanted = self.profile is not None
        if (self.threshold is not None) + (budget is not None) != wanted:
            raise PolicyError(
                f"SmoothCache got threshold={self.threshold} and budget={budget}; give one of them "
                "beside a profile, and none beside a schedule"
            )
        if budget is not None and budget.work is None:
            raise PolicyError(
                f"SmoothCache got {budget}; the network is called at every step, so its budget is "
                "in work, as in budget={work: 25}"
            )
        if self.published is not None and self.published not in PUBLISHED:
            known = "; ".join(PUBLISHED)
            raise PolicyError(f"nothing is published as {self.published!r}; there is {known}")
        for name, entries in (self.schedule or {}).items():
            if not entries or entries[0] != 1 or not set(entries) <= {0, 1}:
                raise PolicyError(
                    f"the schedule of {name!r} is {list(entries)}; it has 0 or 1 for each step, "
                    "and begins with 1"
                )

    @property
    def selects(self) -> Sequence[Selection]:
        """The modules."""
        return (self.sites,)

    def prepare(self) -> None:
        if self.profile is not None:
            self._errors  # noqa: B018 - reads the file

    def calibrator(self) -> SmoothCacheProfiler | None:
        return None if self.profile is None else SmoothCacheProfiler(sites=self.sites)

    @cached_property
    def _loaded(self) -> Profile:
        return load_profile(self, self.profile, (KIND,))

    @cached_property
    def _errors(self) -> Mapping[str, Sequence[Sequence[float]]]:
        """The mean changes of each component."""
        return read_errors(self._loaded)

    def plan_components(self, num_steps: int, costs: Mapping[str, float]) -> ComponentSchedule:
        """The schedule of each component.

        Args:
            num_steps: Steps of the run.
            costs: What each component costs as a share of the network; for a budget only.

        Raises:
            PolicyError: A schedule has another number of steps.
            ProfileError: No threshold keeps the budget.
        """
        if self.profile is None:
            given = PUBLISHED[self.published] if self.published else self.schedule
            assert given is not None
            for name, entries in given.items():
                if len(entries) != num_steps:
                    raise PolicyError(
                        f"the schedule of {name!r} is for {len(entries)} steps and the run has "
                        f"{num_steps}; a schedule holds for its own number of steps"
                    )
            return given
        errors, threshold, budget = self._errors, self.threshold, PlanBudget.of(self.budget)
        if threshold is None:
            assert budget is not None
            assert budget.work is not None
            values = [v for one in errors.values() for row in one for v in row]
            threshold = solve_setting(
                list_thresholds(values),
                lambda t: count_work(plan_all(errors, t), num_steps, costs),
                budget.work + 1e-9,
                f"SmoothCache with {budget}",
            )
        return plan_all(errors, threshold)

    # ---------------------------------------------------------------------------- hooks
    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        if self.profile is not None:
            self.prepare()
            require_match(self._loaded, session, (*self.allow, ROWS))
        if self.budget is None:
            self.plan_components(session.num_steps, {})  # refuses another number of steps

    @hookimpl
    def assign(self, step: Step, call: Parts) -> Mapping[Place, Action]:
        own, feeding = divide_places(call.sites)
        if self.budget is not None and call.age(own[0]) is None:
            return dict.fromkeys(own, KEEP)  # the costs are known once the network ran
        planned: dict[str, dict[Place, tuple[int, ...]]] = step.session.state_of(self, dict)
        if call.model not in planned:
            planned[call.model] = self._place(step.num_steps, own, call)
        newest = planned[call.model]
        plan: dict[Place, Action] = {}
        for place in own:
            if place in newest:
                age = call.age(place)
                due = age is None or step.index - age < newest[place][step.index]
                plan[place] = KEEP if due else NEWEST
        for place, target in feeding:
            if plan.get(target) is NEWEST:
                plan[place] = SKIP
        return plan

    def _place(
        self, num_steps: int, own: Sequence[Place], call: Parts
    ) -> dict[Place, tuple[int, ...]]:
        """For each place with a schedule and every step, the newest step at which it is due."""
        costs = share_costs(own, call) if self.budget is not None else {}
        schedules = self.plan_components(num_steps, costs)
        known = {name_component(place) for place in own} | {place.kind for place in own}
        missing = [name for name in schedules if name not in known]
        if missing:
            raise PolicyError(
                f"SmoothCache has a schedule of {missing[0]!r}, which is no component here; there "
                f"are {', '.join(sorted(known))}"
            )
        found = {}
        for place in own:
            name = name_component(place)
            entries = schedules.get(name, schedules.get(place.kind))
            if entries is not None:
                computed = [index for index, runs in enumerate(entries) if runs]
                found[place] = find_newest(computed, num_steps)
        return found
