"""`At`: modules of the network run on a schedule, and are reused or forecast in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from erta_framework import Policy, Seam, SessionInfo, Step, Traits, hookimpl
from erta_framework.errors import PolicyError
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
from erta_policies.forecast import Forecaster
from erta_policies.shared import plan_newest, require_schedule


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
        when: A schedule that is known before sampling, such as `refresh_interval`.
        what: How the kept outputs are continued, such as `forecaster`; None reuses the newest.
        of: What is kept: the output, or what a block adds to its input.
        max_age: Steps after which a module runs whatever the schedule says.

    Raises:
        PolicyError: `when` has no plan, or a setting is out of range.

    Example:
        >>> from erta_policies.taylorseer import RefreshInterval
        >>> At(sites=Select(kind=("attention",)), when=RefreshInterval(interval=2)).keeps()
        1
    """

    sites: Select | Cut
    when: Policy
    what: Forecaster | None = None
    of: Literal["output", "residual"] = "output"
    max_age: int | None = None

    traits = Traits(static=True, seams=frozenset({Seam.MODULE}))

    def __post_init__(self) -> None:
        require_schedule(self.when, self.name)
        if self.max_age is not None and self.max_age < 1:
            raise PolicyError(f"max_age of at is {self.max_age}, it must be at least 1")
        if self.what is not None and self.what.what != self.of:
            raise PolicyError(
                f"at keeps the {self.of} of its modules, but {self.what!r} continues "
                f"{self.what.what!r}; give both the same"
            )
        if self.what is not None and self.what.basis == "adams":
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
        return 1 if self.what is None else self.what.order + 1

    def prepare(self) -> None:
        self.when.prepare()

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        newest = plan_newest(self.when, session.num_steps)
        session.state_of(self, lambda: newest)

    @hookimpl
    def assign(self, step: Step, call: Parts) -> Mapping[Place, Action]:
        newest: tuple[int, ...] = step.session.state_of(self, tuple)
        keep = KEEP if self.of == "output" else Keep("residual")
        plan: dict[Place, Action] = {}
        made: dict[tuple[tuple[Stamp, ...], ...], ReuseKept] = {}
        fed = {path: place for place in call.sites for path in place.modules[:-1]}
        for place in call.sites:
            if place.modules[-1] in fed:
                continue
            age = call.age(place)
            if age is None or step.index - age < newest[step.index] or self._is_old(age):
                plan[place] = keep
                continue
            # places that were kept at the same steps share one action
            stamps = call.stamps(place)
            if stamps not in made:
                made[stamps] = ReuseKept(self._weigh(step, stamps), self.of)
            plan[place] = made[stamps]
        for place in call.sites:
            target = fed.get(place.modules[-1])
            if target is not None and isinstance(plan[target], ReuseKept):
                plan[place] = SKIP
        return plan

    def _is_old(self, age: int) -> bool:
        return self.max_age is not None and age >= self.max_age

    def _weigh(
        self, step: Step, stamps: tuple[tuple[Stamp, ...], ...]
    ) -> tuple[float, ...] | tuple[tuple[float, ...], ...]:
        """Weights of the kept outputs, newest first; for each sample, where their steps differ."""
        what = self.what
        if what is None:
            return (1.0,)
        rows = [tuple(level[row] for level in stamps) for row in range(len(stamps[0]))]
        found = [weigh_sample(what, step, own) for own in dict.fromkeys(rows)]
        if len(found) == 1:
            return found[0]
        known = dict(zip(dict.fromkeys(rows), found, strict=True))
        depth = max(map(len, found))
        return tuple(known[own] + (0.0,) * (depth - len(known[own])) for own in rows)


def weigh_sample(what: Forecaster, step: Step, stamps: Sequence[Stamp]) -> tuple[float, ...]:
    """Weights of the kept outputs of one sample, from the steps at which they were kept."""
    used = [stamps[0], *(stamp for stamp in stamps[1:] if stamp[0] >= what.since)]
    if what.over == "sigma":
        interval = step.interval
        return what.weights([sigma for _, sigma, _ in used], interval.start, interval.end)
    return what.weights([float(index) for index, *_ in used], float(step.index), step.index + 1.0)
