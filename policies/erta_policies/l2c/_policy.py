"""`L2C`: in every second step, the modules that matter least give what they gave in the first."""

from __future__ import annotations

from collections.abc import Mapping

from erta_framework import Policy, Profiler, Seam, SessionInfo, Step, Traits, hookimpl
from erta_framework.errors import PolicyError, ProfileMismatchError
from erta_framework.modules import KEEP, SKIP, Action, Parts, Place, ReuseKept
from erta_policies.at import divide_places
from erta_policies.l2c._choice import choose_resting
from erta_policies.l2c._profiler import KIND, PLACES, SITES, L2CProfiler
from erta_policies.shared import (
    BudgetLike,
    PlanBudget,
    ProfileSource,
    load_profile,
    require_match,
)

REUSE = ReuseKept()
"""One object, so that a plan is seen to be that of the call before."""


class L2C(Policy):
    """Lets the modules that matter least rest in every second step, within a budget of work.

    Steps come in pairs: in the first all modules run, in the second some of them give the output
    that they gave in the first, with the gates of the current step. So at most about half of the
    work can be saved. A profile says how far the prediction is off where one module alone rests at
    one step; pairs of a step and a module are taken greedily, the smallest error for each part of
    work first, until the budget is kept.

    Source: L2C, arXiv 2406.01733: the pairs of steps, what is kept, the loss. There the choice is
    learned, by routers that are trained with a penalty on what runs; the greedy choice without
    training is ours, and its figures are not theirs.

    Attributes:
        profile: File or profile of an `L2CProfiler`.
        budget: `work`, the most work of each branch in network calls.
        allow: Fingerprint fields of the profile that may differ from the run.

    Raises:
        PolicyError: The budget is not one of work.
        BudgetError: So little work is not possible; when the engine is built.

    Example:
        >>> L2C(profile="l2c.safetensors", budget={"work": 40}).budget.work
        40
    """

    profile: ProfileSource | None = None
    budget: BudgetLike = None
    allow: tuple[str, ...] = ()

    traits = Traits(static=True, seams=frozenset({Seam.MODULE}))
    selects = SITES

    def __post_init__(self) -> None:
        budget = PlanBudget.of(self.budget)
        object.__setattr__(self, "budget", budget)
        if budget is None or budget.work is None:
            raise PolicyError(
                f"L2C got {'no budget' if budget is None else budget}; the network is called at "
                "every step, so give one in work, as in budget={work: 40}"
            )

    def calibrator(self) -> Profiler:
        return L2CProfiler()

    def prepare(self) -> None:
        self.find_resting()

    def find_resting(self) -> tuple[frozenset[str], ...]:
        """Paths of the modules that rest, for each step.

        Raises:
            PolicyError: There is no profile.
            ProfileError: It cannot be read.
            BudgetError: So little work is not possible.
        """
        profile = load_profile(self, self.profile, (KIND,))
        sums, budget = profile.statistics, PlanBudget.of(self.budget)
        assert budget is not None
        assert budget.work is not None
        errors: list[list[float]] = (sums["error"] / sums["rows"]).tolist()
        shares: list[float] = (sums["shares"] / sums["calls"]).tolist()
        places = profile.fingerprint[PLACES].split(",")
        chosen = choose_resting(errors, shares, budget.work, repr(self))
        return tuple(frozenset(places[place] for place in own) for own in chosen)

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        require_match(load_profile(self, self.profile, (KIND,)), session, (*self.allow, PLACES))
        resting = self.find_resting()
        session.state_of(self, lambda: resting)

    @hookimpl
    def assign(self, step: Step, call: Parts) -> Mapping[Place, Action]:
        chosen: tuple[frozenset[str], ...] = step.session.state_of(self, tuple)
        own, feeding = divide_places(call.sites)
        resting = chosen[step.index]
        if missing := resting - {place.path for place in own}:
            raise ProfileMismatchError(
                f"the profile of {self!r} has {min(missing)}, which this network has not; "
                "calibrate on this model"
            )
        plan: dict[Place, Action] = {}
        for place in own:
            # what the first step of the pair gave, and not an older output
            fresh = place.path in resting and call.age(place) == 1
            plan[place] = REUSE if fresh else KEEP
        plan.update((place, SKIP) for place, target in feeding if plan[target] is REUSE)
        return plan
