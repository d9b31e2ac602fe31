"""`At`: modules of the network run on a schedule, and are reused or forecast in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal

from erta_framework import Policy, Seam, SessionInfo, Step, Traits, hookimpl
from erta_framework.budgets import as_planner
from erta_framework.errors import BudgetError, PolicyError
from erta_framework.modules import (
    KEEP,
    SKIP,
    Action,
    Cut,
    Keep,
    Parts,
    Place,
    ReuseKept,
    Select,
    Selection,
)
from erta_framework.session import Stamp
from erta_policies.at._correction import Correction
from erta_policies.forecast import LinearForecast
from erta_policies.shared import FixedSchedule, PlanBudget, plan_newest, require_schedule

Stamps = tuple[tuple[Stamp, ...], ...]
NEWEST = ReuseKept()
"""One object, so that a plan is seen to be that of the call before."""


class At(Policy):
    """Runs some modules of the network on a schedule, and reuses or forecasts them in between.

    FORA (arXiv 2407.01425), PAB (arXiv 2408.12588) and TaylorSeer (arXiv 2503.06923) on attention
    and MLP modules as published, and DeepCache (arXiv 2312.00858) with a `Cut`. The rest of the
    network runs at every step, so that gates and norms are those of the current timestep.

    A module runs if it has not run since the last step that the schedule computes. So a schedule
    of steps serves also beside a rule that leaves out whole steps. A module that only feeds another
    one of `sites`, such as the attention in FLUX' single blocks, is not kept: it is left out where
    the other is reused.

    Attributes:
        sites: Which modules.
        when: A schedule that is known before sampling, such as `refresh_interval`. If its budget is
            in `work`, that is the work of the whole network, whose other parts run at every step.
        what: How the kept outputs are continued, such as `forecaster`; None reuses the newest.
        of: What is kept: the output, or what a block adds to its input.
        max_age: Steps after which a module runs whatever the schedule says.
        then: Corrects what is reused, such as `channel_correction`; what is kept stays as it is.

    Raises:
        PolicyError: `when` has no plan, a setting is out of range, or `max_age` is given beside a
            budget in `work`.

    Example:
        >>> from erta_policies.taylorseer import RefreshInterval
        >>> At(sites=Select(kind=("attention",)), when=RefreshInterval(interval=2)).keeps()
        1
    """

    sites: Select | Cut
    when: Policy
    what: LinearForecast | None = None
    of: Literal["output", "residual"] = "output"
    max_age: int | None = None
    then: Correction | None = None

    traits = Traits(static=True, seams=frozenset({Seam.MODULE}))

    def __post_init__(self) -> None:
        require_schedule(self.when, self.name)
        if self.max_age is not None and self.max_age < 1:
            raise PolicyError(f"max_age of at is {self.max_age}, it must be at least 1")
        if self.max_age is not None and self._work is not None:
            raise PolicyError(
                f"at got max_age={self.max_age} and when={self.when!r}: what runs because of its "
                "age is no part of a budget of work; give one of the two"
            )
        if self.what is not None and self.what.what != self.of:
            raise PolicyError(
                f"at keeps the {self.of} of its modules, but {self.what!r} continues "
                f"{self.what.what!r}; give both the same"
            )
        if self.what is not None and self.what.averages:
            raise PolicyError(
                "at got a forecast on the adams basis, which is the mean of the network's output "
                "over a step; of a module the value at the step is wanted: give basis='newton'"
            )

    @property
    def selects(self) -> Sequence[Selection]:
        """The modules."""
        return (self.sites,)

    def keeps(self) -> int:
        """As many outputs as the forecast continues."""
        return 1 if self.what is None else self.what.evaluations

    def prepare(self) -> None:
        self.when.prepare()
        if self.then is not None:
            self.then.prepare()

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        for part in (self.when, self.then):
            if isinstance(part, FixedSchedule | Correction):
                part.check_session(session)
        if self._work is None:  # else when the share of the modules is known
            self._find_newest(session, None)

    @hookimpl
    def assign(self, step: Step, call: Parts) -> Mapping[Place, Action]:
        plan: dict[Place, Action] = {}
        # places that were kept at the same steps share one action
        made: dict[Stamps, Action] = {}
        before: Stamps | None = None
        action: Action = KEEP
        own, feeding = divide_places(call.sites)
        for place in own:
            stamps = call.stamps(place)
            if self.then is not None:
                plan[place] = self._choose(step, call, place)
                continue
            if stamps is not before:
                if stamps not in made:
                    made[stamps] = self._choose(step, call, place)
                before, action = stamps, made[stamps]
            plan[place] = action
        for place, target in feeding:
            if isinstance(plan[target], ReuseKept):
                plan[place] = SKIP
        return plan

    def _choose(self, step: Step, call: Parts, place: Place) -> Action:
        """The action of one place."""
        age = call.age(place)
        if age is not None:
            # planned where something is kept: then the share of the modules is known
            newest = self._find_newest(step.session, call)[step.index]
            if not self._is_due(step.index, age, newest):
                weights = weigh_kept(self.what, step, call.stamps(place))
                if self.then is not None:
                    then = self.then.correct(step.index, call, place, self.of)
                    return ReuseKept(weights, self.of, then)
                return (
                    NEWEST
                    if (weights, self.of) == ((1.0,), "output")
                    else ReuseKept(weights, self.of)
                )
        return KEEP if self.of == "output" else Keep("residual")

    @property
    def _work(self) -> float | None:
        """The budget of the whole network, where `when` has one."""
        budget = PlanBudget.of(getattr(self.when, "budget", None))
        return None if budget is None else budget.work

    def _is_due(self, index: int, age: int, newest: int) -> bool:
        """Whether a module of this age runs, where the newest computed step is this one."""
        return index - age < newest or (self.max_age is not None and age >= self.max_age)

    def _find_newest(self, session: SessionInfo, call: Parts | None) -> tuple[int, ...]:
        """For every step, the newest step up to it that the schedule computes; planned once.

        With a budget of work once for each network.
        """
        planned: dict[str, tuple[int, ...]] = session.state_of(self, dict)
        key = "" if self._work is None or call is None else call.model
        if key not in planned:
            when = self.when
            if self._work is not None:
                planner = as_planner(when)
                assert planner is not None
                assert call is not None
                calls = count_calls(self._work, session.num_steps, call.share, self)
                found = planner.with_calls(calls)
                assert isinstance(found, Policy)  # `when` has a budget, so it takes another
                when = found
            planned[key] = plan_newest(when, session.num_steps)
        return planned[key]


@lru_cache(maxsize=64)
def divide_places(sites: tuple[Place, ...]) -> tuple[list[Place], list[tuple[Place, Place]]]:
    """The places that are kept; and those that only feed one of them, with that one."""
    fed = {path: place for place in sites for path in place.modules[:-1]}
    feeding = [(place, fed[place.modules[-1]]) for place in sites if place.modules[-1] in fed]
    aside = {place for place, _ in feeding}
    return [place for place in sites if place not in aside], feeding


def count_calls(work: float, num_steps: int, share: float | None, who: object) -> int:
    """In how many of the steps modules may run, so that the whole network does so much work.

    Args:
        work: In network calls' worth of FLOPs.
        num_steps: Steps; the rest of the network runs at each.
        share: What the modules cost, as a share of the network.
        who: The policy, for messages.

    Raises:
        PolicyError: The share is not known.
        BudgetError: The rest of the network alone costs more.

    Example:
        >>> count_calls(20.0, 50, 0.8, "at")
        12
    """
    if not share:
        raise PolicyError(
            f"{who} has a budget of work, but what its modules cost is not known; give calls"
        )
    least = num_steps * (1.0 - share) + share
    if work < least - 1e-9:
        raise BudgetError(
            f"{who} has the work of {work:g} network calls for {num_steps} steps, but the rest of "
            f"the network, with its modules at one step, costs {least:.2f}: they are {share:.0%} "
            "of a call; give more, or select more modules",
            least=least,
        )
    return min(num_steps, int((work - num_steps * (1.0 - share)) / share + 1e-9))


def weigh_kept(
    what: LinearForecast | None, step: Step, stamps: Stamps
) -> tuple[float, ...] | tuple[tuple[float, ...], ...]:
    """Weights of the kept outputs, newest first; for each sample, where their steps differ.

    Args:
        what: The forecast; None for the newest as it is.
        step: The step that is forecast.
        stamps: When they were kept, as `call.stamps` says.
    """
    if what is None:
        return (1.0,)
    rows = [tuple(level[row] for level in stamps) for row in range(len(stamps[0]))]
    found = [weigh_sample(what, step, own) for own in dict.fromkeys(rows)]
    if len(found) == 1:
        return found[0]
    known = dict(zip(dict.fromkeys(rows), found, strict=True))
    depth = max(map(len, found))
    return tuple(known[own] + (0.0,) * (depth - len(known[own])) for own in rows)


def weigh_sample(what: LinearForecast, step: Step, stamps: Sequence[Stamp]) -> tuple[float, ...]:
    """Weights of the kept outputs of one sample, from the steps at which they were kept."""
    used = [stamps[0], *(stamp for stamp in stamps[1:] if stamp[0] >= what.since)]
    if what.over == "sigma":
        interval = step.interval
        return what.weights([sigma for _, sigma, _ in used], interval.start, interval.end)
    return what.weights([float(index) for index, *_ in used], float(step.index), step.index + 1.0)
