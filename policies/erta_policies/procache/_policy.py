"""`ProCache`: modules run at the full steps of a plan; between, deep ones refresh some tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

from erta_framework import Policy, Profile, Profiler, Seam, SessionInfo, Step, Traits, hookimpl
from erta_framework.errors import MissingProfileError, PolicyError, suggest
from erta_framework.modules import (
    KEEP,
    SKIP,
    Action,
    Parts,
    Place,
    ReuseKept,
    Select,
    Selection,
    Tokens,
)
from erta_policies.at import divide_places
from erta_policies.procache._choice import PlanSource
from erta_policies.procache._depths import count_depths, find_deep
from erta_policies.procache._presets import DIT, MODULES, PRESETS, Preset
from erta_policies.procache._ratio import TokenRatio
from erta_policies.procache._scores import KIND, read_scores
from erta_policies.procache._work import choose_plan, measure_work
from erta_policies.shared import (
    SELECT,
    BudgetLike,
    PlanBudget,
    StepPlan,
    TokenScore,
    load_profile,
    refresh_tokens,
    require_match,
)

NEWEST = ReuseKept()
Planned = tuple[StepPlan, tuple[int, ...]]


class ProCache(Policy):
    """Runs attention and MLPs at the full steps of a plan, and refreshes deep tokens in between.

    At a full step, `F`, every module runs, and its output is kept before the gate. At `c` it is
    reused, with the gate of the current step. At `S` deep blocks run their MLP, and their
    cross-attention, on the tokens of the highest score; what comes out replaces what is kept of
    these, and lasts. Self-attention is reused as a whole, since it mixes tokens.

    The plan is written down, published, or one of a family whose gaps never grow. Of the family it
    is the one that was best on calibration samples, or without a profile the most gradual one.
    A family's plan gets `S` at every second step of each gap.

    Source: ProCache, arXiv 2512.17298, with macovaseas/ProCache; `S` and its scores are ToCa's,
    arXiv 2410.05317. Listing the whole family, the error that scores a plan, the gradual plan and
    the budgets are ours.

    Attributes:
        plan: A plan, such as `"(FcSc)x6 (FcS)x4 (Fc)x7"`.
        preset: Name of a published plan with its ratios and scores, see `PRESETS`.
        profile: File or profile of a `ProCacheProfiler`, which scored plans.
        budget: `calls` or `speedup` for so many full steps, or `work` of the whole network; with a
            profile among its plans, alone for the most gradual plan.
        shortest: Fewest reused steps between two full ones, of the most gradual plan.
        longest: Most.
        select: Whether tokens are refreshed; False reuses them.
        depth: Blocks from this part of the depth on refresh tokens; 0.75 unless the preset says so.
        ratio: How many tokens; by default the preset's, or a fifth.
        score: Which; by default the preset's, or by norm and age.
        sites: Which modules.
        allow: Fingerprint fields of the profile that may differ from the run.

    Raises:
        PolicyError: There is not one source of a plan, or a setting is out of range.
        CapabilityError: In the first step that refreshes, a module has no tokens of each sample.

    Example:
        >>> ProCache(plan="FcS Fc").list_plans(5)[0].states
        'FcSFc'
    """

    plan: str | None = None
    preset: str | None = None
    profile: str | Path | Profile | None = None
    budget: BudgetLike = None
    shortest: int = 1
    longest: int = 4
    select: bool = True
    depth: float | None = None
    ratio: TokenRatio | None = None
    score: TokenScore | None = None
    sites: Select = MODULES
    allow: tuple[str, ...] = ()

    traits = Traits(static=True, seams=frozenset({Seam.MODULE}))

    def __post_init__(self) -> None:
        object.__setattr__(self, "budget", PlanBudget.of(self.budget))
        if self.preset is not None and self.preset not in PRESETS:
            raise PolicyError(
                f"ProCache has no preset {self.preset!r}; {suggest(self.preset, PRESETS)}"
            )
        if self.depth is not None and not 0.0 <= self.depth <= 1.0:
            raise PolicyError(f"depth of ProCache is {self.depth}, it must be in [0, 1]")
        if set(self.sites.kind) - {"attention", "cross", "mlp"}:
            raise PolicyError(
                f"ProCache selects {', '.join(self.sites.kind)}; give attention, cross and mlp"
            )
        _ = self._source

    @property
    def selects(self) -> Sequence[Selection]:
        """The modules."""
        return (self.sites,)

    def prepare(self) -> None:
        if self.profile is not None:
            _ = self._profile

    def calibrator(self) -> Profiler | None:
        from erta_policies.procache._profiler import ProCacheProfiler

        if self.plan is not None or self.preset is not None:
            return None
        budget = PlanBudget.of(self.budget)
        full = None if budget is None or budget.calls is None else (budget.calls,)
        return ProCacheProfiler(
            full=full, shortest=self.shortest, longest=self.longest, sites=self.sites
        )

    def list_plans(self, num_steps: int) -> Sequence[StepPlan]:
        """The plans that there are for so many steps, the preferred one first.

        With a budget those with more full steps go before, and of as many the better one.

        Raises:
            PolicyError: There is none, such as a plan of another number of steps.
        """
        scored = () if self.profile is None else read_scores(self._profile)
        return self._source.list_plans(num_steps, scored)

    @cached_property
    def _profile(self) -> Profile:
        return load_profile(self, self.profile, (KIND,))

    @cached_property
    def _source(self) -> PlanSource:
        budget = PlanBudget.of(self.budget)
        written = None if self.plan is None else StepPlan.parse(self.plan)
        if self.preset is not None:
            written = PRESETS[self.preset].plan
        names = ("plan", "preset", "profile", "budget")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1 and given != ["profile", "budget"]:
            lacking = PolicyError if given else MissingProfileError
            raise lacking(
                f"ProCache got {' and '.join(given) or 'no plan'}; give a plan, a preset, a "
                "profile, a budget, or a profile with a budget"
            )
        return PlanSource(written, budget, self.shortest, self.longest, self.select)

    @cached_property
    def _settings(self) -> Preset:
        found = PRESETS.get(self.preset or "")
        if found is None:
            found = replace(DIT, ratio=TokenRatio(), score=TokenScore())
        return replace(
            found,
            depth=found.depth if self.depth is None else self.depth,
            ratio=self.ratio or found.ratio,
            score=self.score or found.score,
        )

    # ----------------------------------------------------------------------- a request
    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        if self.profile is not None:
            require_match(self._profile, session, self.allow)
        self.list_plans(session.num_steps)  # refuses another number of steps
        if self._source.work is None:
            self._find_plan(session, None)

    @hookimpl
    def assign(self, step: Step, call: Parts) -> Mapping[Place, Action]:
        own, feeding = divide_places(call.sites)
        deep = find_deep(own, self._settings.depth)
        ages = {place: call.age(place) for place in own}
        state, newest, refreshes = "", step.index, self.select
        # a plan in work is made where something is kept: then the share of the modules is known
        if self._source.work is None or any(age is not None for age in ages.values()):
            plan, steps = self._find_plan(step.session, call)
            state, newest = plan.states[step.index], steps[step.index]
            refreshes = SELECT in plan.states
        actions: dict[Place, Action] = {}
        for place, age in ages.items():
            if age is None or step.index - age < newest:
                actions[place] = KEEP
            elif state == SELECT and place in deep:
                actions[place] = self._refresh(step, call, place, own) or NEWEST
            else:
                actions[place] = NEWEST
        for place, target in feeding:
            if isinstance(actions[target], Tokens):
                actions[place] = NEWEST
            elif actions[target] is not KEEP:
                actions[place] = SKIP
            elif refreshes and target in deep:
                actions[place] = KEEP
        return actions

    def _refresh(
        self, step: Step, call: Parts, place: Place, own: Sequence[Place]
    ) -> Tokens | None:
        part = self._ratio(step.num_steps, count_depths(own), step.index, place)
        channels = step.session.channel_dim
        return refresh_tokens(self, call, place, self._settings.score, part, channels)

    def _ratio(self, num_steps: int, depths: int, index: int, place: Place) -> float:
        return self._settings.ratio.part(index, num_steps, place.depth, depths, place.kind)

    def _find_plan(self, session: SessionInfo, call: Parts | None) -> Planned:
        """The plan with its newest full step at each step; made once, in work once a network."""
        planned: dict[str, Planned] = session.state_of(self, dict)
        work = self._source.work
        key = "" if work is None or call is None else call.model
        if key not in planned:
            plans = self.list_plans(session.num_steps)
            chosen = plans[0]
            if work is not None:
                assert call is not None
                if call.costs is None:
                    raise PolicyError(
                        f"{self!r} has a budget of work, but what its modules cost is not known; "
                        "give calls"
                    )
                own, _ = divide_places(call.sites)
                ratio = partial(self._ratio, session.num_steps, count_depths(own))
                deep = find_deep(own, self._settings.depth)
                chosen = choose_plan(
                    plans, work, lambda plan: measure_work(plan, call, deep, ratio), self.name
                )
            planned[key] = chosen, chosen.newest
        return planned[key]
