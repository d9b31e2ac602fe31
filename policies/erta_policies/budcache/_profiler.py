"""`BudCacheProfiler`: searches the steps of a budget by running plans."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import replace

import torch

from erta_framework import Policy, Profile, SessionInfo, Step, Traits, hookimpl
from erta_framework.budgets import ListedSteps
from erta_framework.calibration import Entry, ProfileKind, SampleWith
from erta_framework.errors import PolicyError
from erta_policies.budcache._search import Search, search_steps, start_plan
from erta_policies.shared import BudgetLike, PlanBudget, RunProfiler

KIND = ProfileKind(
    "budcache_profiler",
    {
        "computed": Entry(shape="T", counts=True),
        "loss": Entry(shape="2"),
        "runs": Entry(shape="1", counts=True),
    },
)


class BudCacheProfiler(RunProfiler):
    """Searches the computed steps of a budget by whole runs under one plan after another.

    The loss of a plan is the mean squared difference of the latents at the end from those of the
    full run. The first `prefix` of the calls are the first steps, fixed. 200 moves of simulated
    annealing, from a temperature of 0.1 to 1e-4, are followed by 5 hill climbs with 20 neighbours
    each: some 300 cached runs. The authors search on one prompt.

    The kind of moves, the start, losses relative to that of the start, and leaving the sigmas as
    they are (the authors can fit them again afterwards) are ours.

    Source: BudCache, ICML 2026, from readings of its code.

    Attributes:
        budget: What to search for: one of `calls`, `speedup` and `work`.
        predictor: Answers the reused steps in the search; None is the core's own reuse.
        prefix: Part of the calls that are the first steps.
        iterations: Moves of the annealing.
        climbs: Hill climbs.
        neighbours: Plans that a climb looks at.
        seed: Of the moves.

    Raises:
        PolicyError: There is no budget, or a setting is out of range.
        InputError: The run does not start at step 0.

    Example:
        >>> profiler = BudCacheProfiler(budget={"calls": 12})
        >>> Sampler().calibrate(model, ["a cat"], profiler=profiler)  # doctest: +SKIP
    """

    traits = Traits(deterministic=True)
    kind = KIND
    budget: BudgetLike = None
    predictor: Policy | None = None
    prefix: float = 0.3
    iterations: int = 200
    climbs: int = 5
    neighbours: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        budget = PlanBudget.of(self.budget)
        object.__setattr__(self, "budget", budget)
        if budget is None or budget.measured:
            raise PolicyError(
                f"BudCacheProfiler(budget={self.budget}): give budget={{calls: 12}}, or one of "
                "speedup and work"
            )
        if not 0 <= self.prefix <= 1 or min(self.iterations, self.climbs, self.neighbours) < 0:
            raise PolicyError(
                f"BudCacheProfiler(prefix={self.prefix}, iterations={self.iterations}, "
                f"climbs={self.climbs}, neighbours={self.neighbours}): the prefix is a part from 0 "
                "to 1, the others are 0 or more"
            )

    @property
    def tries_out(self) -> bool:
        """Yes, unless there is no search: the start of it is then the plan."""
        return self.iterations > 0 or self.climbs > 0

    def finish(self, profile: Profile, sample: SampleWith) -> Profile:
        """Search, with the samples of the calibration."""
        held = profile.statistics["computed"]
        start = tuple(held.nonzero().flatten().tolist())
        _, fixed = start_plan(len(held), len(start), self.prefix)
        # every plan begins like the full run, whose calls are kept for them
        goal = sample((), keep=True).double()
        beside = () if self.predictor is None else (self.predictor,)

        def measure(steps: tuple[int, ...]) -> float:
            ends = sample((ListedSteps(steps=steps), *beside)).double()
            loss = float((ends - goal).square().mean())
            return loss if math.isfinite(loss) else math.inf

        search = Search(len(held), fixed, measure, random.Random(self.seed))
        steps = search_steps(
            search,
            start,
            iterations=self.iterations,
            climbs=self.climbs,
            neighbours=self.neighbours,
        )
        losses = (search.losses[start], search.losses[steps])
        found = make_statistics(profile.samples, len(held), steps, losses, len(search.losses) + 1)
        return replace(profile, statistics=found)

    @hookimpl
    def post_step(self, step: Step, sample: torch.Tensor) -> None:
        step.session.state_of(self, dict[str, int])["last"] = step.index

    def summarise(self, session: SessionInfo) -> Profile | None:
        count = session.num_steps
        if session.state_of(self, dict[str, int]).get("last") != count - 1:
            return None
        budget = PlanBudget.of(self.budget)
        assert budget is not None
        start, _ = start_plan(count, budget.calls_for(count), self.prefix)
        return self.emit(session, make_statistics(session.shape[0], count, start))


def make_statistics(
    samples: int,
    num_steps: int,
    steps: tuple[int, ...],
    losses: tuple[float, float] = (0.0, 0.0),
    runs: int = 0,
) -> Mapping[str, torch.Tensor]:
    """The plan, its loss at the start and at the end of the search, and the runs that took.

    They are sums over samples, as every statistic is, so that batches merge.
    """
    computed = torch.zeros(num_steps, dtype=torch.float64)
    computed[list(steps)] = samples
    return {
        "computed": computed,
        "loss": samples * torch.tensor(losses, dtype=torch.float64),
        "runs": torch.tensor([float(runs)], dtype=torch.float64),
    }
