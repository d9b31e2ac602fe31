"""`ProCacheProfiler`: scores the plans of a family by what they lead to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from erta_framework import Policy, Profile, Profiler, Seam, SessionInfo, Step, Traits, hookimpl
from erta_framework.errors import PolicyError
from erta_framework.modules import KEEP, Action, Parts, Place, Select, Selection
from erta_policies.at import At
from erta_policies.ertacache import SkipPolicy
from erta_policies.procache._plan_observer import Ends, PlanObserver
from erta_policies.procache._presets import MODULES
from erta_policies.procache._scores import write_plans
from erta_policies.shared import PlanFamily, StepPlan


@dataclass(slots=True)
class Trajectory:
    """A batch: where its full run began and ended, and the errors of the plans so far.

    Attributes:
        start: Latents of its first network call.
        end: Latents after the last step of the full run.
        errors: Error of each plan, summed over the samples.
    """

    start: Tensor
    end: Tensor
    errors: list[float] = field(default_factory=list)


class ProCacheProfiler(PlanObserver):
    """Samples with every plan of some families, and measures how far each ends from the full run.

    The first round is the full run; then each plan has a round of its own on the same samples, in
    closed loop, without refreshed tokens. So calibration costs one full run, and for each plan what
    a run with it costs. The error of a plan is the sum over samples of `measure`. Profiles of
    batches merge by adding.

    Source: ProCache, arXiv 2512.17298, scores a few plans that are drawn at random, before tokens
    are refreshed, by FID, CLIP or ImageReward. All plans, and the error, are ours.

    Attributes:
        full: Numbers of full steps, a family each.
        shortest: Fewest reused steps between two full ones.
        longest: Most.
        most: At most so many plans of each family, spread over it.
        sites: Which modules.

    Raises:
        PolicyError: A setting is out of range.
        InputError: The trajectory does not start at step 0.

    Example:
        >>> ProCacheProfiler(full=(17,)).count_rounds(50)
        31
    """

    traits = Traits(
        seams=frozenset({Seam.LATENT, Seam.MODULE}), reads_latents=True, deterministic=True
    )
    full: tuple[int, ...] | None = None
    shortest: int = 1
    longest: int = 4
    most: int = 32
    sites: Select = MODULES

    def __post_init__(self) -> None:
        if self.most < 1 or self.full == () or not 0 <= self.shortest <= self.longest:
            raise PolicyError(
                f"{self!r}: give at least one number of full steps and one plan of each, and gaps "
                "from 0 up to more or as many"
            )

    def list_plans(self, num_steps: int) -> Sequence[StepPlan]:
        """The plans that are scored for so many steps; without `full`, those of a third of them.

        Raises:
            PolicyError: A family has no plan.
        """
        numbers = (round(num_steps / 3),) if self.full is None else self.full
        found: list[StepPlan] = []
        for number in numbers:
            family = PlanFamily(num_steps, number, self.shortest, self.longest)
            found += [family.plans[k] for k in family.take(self.most)]
        return found

    def count_rounds(self, num_steps: int) -> int:
        """How often the calibration samples are sampled."""
        return 1 + len(self.list_plans(num_steps))

    def measure(self, cached: Tensor, full: Tensor) -> Tensor:
        """Error of each sample: the root mean square of the difference, relative to the full run.

        A subclass may measure something else, such as a distance of decoded images.

        Args:
            cached: Latents at the end of the run with a plan, `[B, C, ...]`.
            full: Those of the full run.

        Returns:
            At least 0, lower is better, `[B]`.
        """
        difference = (cached - full).flatten(1).double().norm(dim=1)
        error: Tensor = difference / full.flatten(1).double().norm(dim=1).clamp_min(1e-12)
        return error

    @cached_property
    def _trajectories(self) -> list[Trajectory]:
        # handed from round to round; not in the profile, since ends are no sums over samples
        return []

    @property
    def selects(self) -> Sequence[Selection]:
        """The modules, so that a network that lacks them is refused before the first round."""
        return (self.sites,)

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        super().on_session_start(session)
        self.list_plans(session.num_steps)

    @hookimpl
    def assign(self, step: Step, call: Parts) -> Mapping[Place, Action]:
        # every module runs; kept once, so that it is known to fit what the rounds will keep
        return dict.fromkeys(call.sites, KEEP) if step.index == 0 else {}

    def summarise(self, session: SessionInfo) -> Profile | None:
        ends = session.state_of(self, Ends)
        if ends.start is None or ends.end is None:
            return None
        known = Trajectory(ends.start, ends.end)
        self._trajectories.append(known)
        return self.emit_errors(session, known)

    def emit_errors(self, session: SessionInfo, known: Trajectory) -> Profile:
        """The errors of a batch so far, 0 for plans that are still to come."""
        plans, batch = self.list_plans(session.num_steps), session.shape[0]
        errors = [*known.errors, *[0.0] * (len(plans) - len(known.errors))]
        return self.emit(
            session,
            {
                "full": write_plans(plans, batch),
                "error": torch.tensor(errors, dtype=torch.float64),
            },
            provenance={
                "family": f"{self.full or 'a third'} full steps, {self.shortest} to {self.longest} "
                "reused ones between, gaps that never grow"
            },
        )

    def next_profiler(self, profile: Profile) -> Profiler | None:
        return PlanRound(of=self, place=0, num_steps=profile.num_steps)


class PlanRound(PlanObserver):
    """One round of `ProCacheProfiler`: the same samples with one plan.

    Source: ours.

    Attributes:
        of: The profiler.
        place: Place of the plan among its plans.
        num_steps: Steps of the run.
        rule: Reuses the modules; made from the plan.
    """

    traits = ProCacheProfiler.traits
    of: ProCacheProfiler
    place: int
    num_steps: int
    rule: Policy | None = None

    def __post_init__(self) -> None:
        plan = self.of.list_plans(self.num_steps)[self.place]
        rule = At(sites=self.of.sites, when=SkipPolicy(steps=plan.full))
        object.__setattr__(self, "rule", rule)

    @property
    def _cache(self) -> At:
        assert isinstance(self.rule, At)
        return self.rule

    @property
    def selects(self) -> Sequence[Selection]:
        """The modules."""
        return self._cache.selects

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        super().on_session_start(session)
        self._cache.on_session_start(session)

    @hookimpl
    def assign(self, step: Step, call: Parts) -> Mapping[Place, Action]:
        return self._cache.assign(step, call)

    def summarise(self, session: SessionInfo) -> Profile | None:
        ends = session.state_of(self, Ends)
        if ends.start is None or ends.end is None:
            return None
        for known in reversed(self.of._trajectories):  # those of this calibration
            if torch.equal(known.start, ends.start):
                errors = self.of.measure(ends.end, known.end)
                known.errors[self.place :] = [float(errors.sum())]
                return self.of.emit_errors(session, known)
        raise PolicyError(
            "ProCacheProfiler samples the same noise in every round, and this batch begins with "
            "latents that no full run began with; draw the noise from the same seeds"
        )

    def next_profiler(self, profile: Profile) -> Profiler | None:
        if self.place == len(self.of.list_plans(self.num_steps)) - 1:
            self.of._trajectories.clear()
            return None
        return PlanRound(of=self.of, place=self.place + 1, num_steps=self.num_steps)
