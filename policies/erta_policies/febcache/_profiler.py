"""`FEBCacheProfiler`: finds the table of FEB-Cache on the cached trajectories themselves."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import Final, Literal

import torch
from torch import Tensor

from erta_framework import Call, Profile, Profiler, Seam, SessionInfo, Step, Traits, hookimpl
from erta_framework.errors import BudgetError, PolicyError
from erta_framework.modules import KEEP, Action, Parts, Place, ReuseKept, Select
from erta_framework.session import PLANNED, TRIAL
from erta_policies.febcache._search import Search
from erta_policies.febcache._statistics import KIND, choose_state, find_least_work, find_table_work
from erta_policies.febcache._table import ATTENTION, BOTH, MLP, NONE, State
from erta_policies.febcache._walk import COUNTS, Walk
from erta_policies.noise_scale import NoiseScale
from erta_policies.shared import BudgetLike, PlanBudget, RunProfiler, require_computed

REUSE: Final = ReuseKept()
SITES: Final = (Select(kind=("attention", "cross")), Select(kind=("mlp",)))


class FEBCacheProfiler(RunProfiler):
    """Finds the table of FEB-Cache for a requested amount of work.

    At each step the network runs on the same latents without reuse, with both attention and MLPs
    reused, and, where that is not close enough, with one of them: the MLPs in the noisy part of the
    run, the attention later. The cheapest that is close enough is accepted, and the trajectory goes
    on with it, with what its own steps keep. The first step reuses nothing.

    The paper's tolerance grows linearly over the run. What it leaves open, or what its code does
    not have, is ours: the closed loop; an error relative to the network without reuse; a tolerance
    of `scale * k / (T - 1)` at step k; its scale, searched in further rounds on the same samples
    until the table leaves the requested work; that a state is accepted where at least half of the
    rows accept it; that the first branch of a step decides for all; and for networks that predict
    no noise, the norm of what they predict.

    Source: FEB-Cache, arXiv 2503.07120, Algorithm 1 as two readings of it describe; it is not in
    the repository.

    Attributes:
        budget: What a run under the table may cost: `work` in network calls of each branch, or
            `speedup`.
        metric: `"norm"`, as published, compares the lengths of the predictions; `"l2"` measures
            the length of their difference, so that a wrong direction of the right length is not
            accepted.
        noise: The factor of the noise in the reused predictions that are compared, as published, of
            networks that predict noise; None, ours, compares them as they are.
        late: The part of the run after which the single candidate is the attention; 0.6 is 1 - t*.
        tolerance: How far the work may be from what was asked for, as a part of the full run.
        rounds: Most rounds of the search.
        search: Where the search stands; left to the calibration.

    Raises:
        PolicyError: A setting is out of range.
        BudgetError: There is no table with so little work.
        InputError: The run does not start at step 0.

    Example:
        >>> profiler = FEBCacheProfiler(budget={"work": 35.0})
        >>> Sampler().calibrate(model, prompts, profiler=profiler)  # doctest: +SKIP
    """

    kind = KIND
    traits = Traits(seams=frozenset({Seam.MODULE}), requires=frozenset({TRIAL, PLANNED}))
    selects = SITES

    budget: BudgetLike = PlanBudget(speedup=1.5)
    metric: Literal["norm", "l2"] = "norm"
    noise: NoiseScale | None = None
    late: float = 0.6
    tolerance: float = 0.01
    rounds: int = 8
    search: Search = Search()

    def __post_init__(self) -> None:
        budget = PlanBudget.of(self.budget)
        if budget is None or (budget.work is None and budget.speedup is None):
            raise PolicyError(
                f"{self.name} got budget={self.budget!r}; give the work of a run, as in "
                "budget={work: 35}, or a speedup"
            )
        object.__setattr__(self, "budget", budget)
        if self.metric not in ("norm", "l2"):
            raise PolicyError(f"metric of {self.name} is {self.metric!r}; give 'norm' or 'l2'")
        if not 0.0 <= self.late <= 1.0:
            raise PolicyError(f"late of {self.name} is {self.late}, outside [0, 1]")
        if self.rounds < 1 or not self.tolerance > 0:
            raise PolicyError(
                f"{self.name} has rounds={self.rounds} and tolerance={self.tolerance}; give at "
                "least one round and a tolerance above 0"
            )

    # ------------------------------------------------------------------------- a request
    @hookimpl
    def assign(self, step: Step, call: Parts) -> Mapping[Place, Action]:
        walk = step.session.state_of(self, Walk)
        return plan_state(walk.states.get(step.index, NONE), call)

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        walk = step.session.state_of(self, Walk)
        if step.index > step.session.first and step.index not in walk.states:
            walk.states[step.index] = self._decide(step, call, walk)
        output = yield
        require_computed(self, step, call)
        return output

    def _decide(self, step: Step, call: Call, walk: Walk) -> State:
        """The cheapest state that is close enough to the network without reuse."""
        full, late = call.trial(plan=walk.learn_shares), self._is_late(step.index, step.num_steps)
        limit = self.search.scale * step.index / max(1, step.num_steps - 1)
        both = self._measure(step, full, call, BOTH)
        accepted = both <= limit
        found = {"rows": len(both), "both": int(accepted.sum()), "error": float(both.sum())}
        if 2 * found["both"] < len(both):
            accepted |= self._measure(step, full, call, ATTENTION if late else MLP) <= limit
        found["one"] = int(accepted.sum())
        for name, value in found.items():
            walk.sums[name][step.index] = value
        return choose_state(len(both), found["both"], found["one"], late)

    def _measure(self, step: Step, full: Tensor, call: Call, state: State) -> Tensor:
        """The relative error of a state in each row, `[B]`."""
        reused = call.trial(plan=lambda parts: plan_state(state, parts))
        if self.noise is not None and step.session.prediction == "epsilon":
            reused = reused * self.noise.factors(step.num_steps)[step.index]
        return measure_error(full, reused, self.metric)

    def _is_late(self, index: int, num_steps: int) -> bool:
        return index >= self.late * num_steps

    def summarise(self, session: SessionInfo) -> Profile | None:
        walk, steps = session.state_of(self, Walk), range(session.num_steps)
        if session.num_steps - 1 not in walk.states:
            return None
        if not walk.shares:
            raise PolicyError(
                f"{self!r} needs what the modules cost, which could not be measured in this "
                "network; give a table instead"
            )
        statistics = {
            name: torch.tensor([float(walk.sums[name].get(k, 0.0)) for k in steps]).double()
            for name in COUNTS
        }
        late = [float(self._is_late(k, session.num_steps)) for k in steps]
        statistics["late"] = torch.tensor(late).double()
        statistics["calls"] = torch.ones(1).double()
        statistics["shares"] = torch.tensor(walk.shares).double()
        facts = {"metric": self.metric, "scale": f"{self.search.scale:.6g}"}
        return self.emit(session, statistics, provenance=facts)

    # ------------------------------------------------------------------------- the search
    def find_share(self, num_steps: int) -> float:
        """The requested work as a part of that of the full run."""
        budget = PlanBudget.of(self.budget)
        assert budget is not None
        if budget.speedup is not None:
            return 1.0 / budget.speedup
        assert budget.work is not None
        return min(1.0, budget.work / num_steps)

    def next_profiler(self, profile: Profile) -> Profiler | None:
        wanted, steps = self.find_share(profile.num_steps), profile.num_steps
        least = find_least_work(profile)
        if wanted < least - 1e-9:
            raise BudgetError(
                f"{self.name} was asked for the work of {wanted * steps:.2f} network calls in "
                f"{steps} steps, but attention and MLPs reused at every step but the first leave "
                f"{least * steps:.2f}; ask for more",
                least=least * steps,
            )
        search = self.search.narrow(find_table_work(profile), wanted)
        assert search.gap is not None
        done = search.gap <= self.tolerance or search.rounds >= self.rounds
        if done and search.best == self.search.scale:
            return None
        if search.rounds >= self.rounds:  # once more, with the best
            search = replace(search, scale=search.best)
        return replace(self, search=search)


def measure_error(full: Tensor, reused: Tensor, metric: str) -> Tensor:
    """How far a prediction with reuse is from one without, relative to its length, `[B]`.

    Args:
        full: Without reuse, `[B, C, ...]`.
        reused: With reuse.
        metric: `"norm"` compares lengths, `"l2"` measures the difference.

    Example:
        >>> full = torch.tensor([[3.0, 4.0]])
        >>> measure_error(full, -full, "norm"), measure_error(full, -full, "l2")
        (tensor([0.]), tensor([2.]))
    """
    full, reused = full.flatten(1).float(), reused.flatten(1).float()
    length = torch.linalg.vector_norm(full, dim=1)
    if metric == "norm":
        error = (length - torch.linalg.vector_norm(reused, dim=1)).abs()
    else:
        error = torch.linalg.vector_norm(full - reused, dim=1)
    relative: Tensor = error / length.clamp(min=torch.finfo(torch.float32).tiny)
    return relative


def plan_state(state: State, call: Parts) -> dict[Place, Action]:
    """What every place does in a state; one that keeps nothing yet runs."""
    reused = {BOTH: ("mlp", "attention", "cross"), MLP: ("mlp",), ATTENTION: ("attention", "cross")}
    kinds = reused.get(state, ())
    return {
        place: REUSE if place.kind in kinds and call.age(place) is not None else KEEP
        for place in call.sites
    }
