"""Plans replayed on calibration samples: what each number of network calls costs and gives.

A planner predicts; this measures. The full run and every plan are sampled from the same noise, and
what they gave is kept in the profile, so that a budget may be asked for in dB or in seconds. A plan
may also be refined: computed steps are moved one by one, and a move is kept where it raises the
PSNR on the calibration samples. How many network calls all this takes is known beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from erta_framework.budgets._forecast import Planner, forecast, unit_of
from erta_framework.budgets._measured_front import MeasuredFront, device_facts
from erta_framework.config import build_policies
from erta_framework.errors import InputError, PolicyError
from erta_framework.metrics import psnr
from erta_framework.plugins import Policy, flatten, list_budgeted
from erta_framework.sampling import Sampler, Samples, TextModel, resolve_device


class Replayer(Protocol):
    """What samples a replay: any `TextSampler`, or a pipeline that holds its model."""

    def sample(self, model: Any, prompts: Sequence[str], *, seed: int = 0) -> Samples: ...


MakeSampler = Callable[[Sequence[Policy]], Replayer]
"""A sampler with these policies; the same run in everything else."""


@runtime_checkable
class Replannable(Protocol):
    """A policy that plans for any number of network calls."""

    def with_calls(self, calls: int) -> Policy: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySetting:
    """What all replays share.

    Attributes:
        sampler: Makes the sampler of a run.
        model: The model; None where the sampler holds it.
        prompts: Calibration prompts.
        seed: Sample k draws its noise from `seed + k`.
        batch: Samples of a request.
        device: Name of the accelerator that runs, as for `Sampler`.
    """

    sampler: MakeSampler
    model: TextModel | None
    prompts: Sequence[str]
    seed: int = 0
    batch: int = 16
    device: str = "auto"

    def run(self, policies: Sequence[Policy]) -> Samples:
        """The samples under these policies."""
        return self.sampler(policies).sample(self.model, self.prompts, seed=self.seed)


def own_loop(sampler: Sampler) -> MakeSampler:
    """Runs of the own loop that are like this sampler's but for their policies."""
    import copy

    from erta_framework.plugins import Engine
    from erta_framework.sampling import SamplingLoop

    def make(policies: Sequence[Policy]) -> Sampler:
        twin = copy.copy(sampler)
        twin.policies = tuple(policies)
        twin.callbacks = ()
        twin.loop = SamplingLoop(Engine(twin.policies), sampler.solver, sampler.guidance)
        return twin

    return make


# ------------------------------------------------------------------------------ policies
def for_calls(policies: Sequence[Policy], calls: int) -> tuple[Policy, ...]:
    """The policies with the planner among them asked for a number of calls.

    Raises:
        PolicyError: None of them plans for any number of calls.
    """
    found = list(policies)
    for place, policy in enumerate(found):
        if isinstance(policy, Replannable):
            found[place] = policy.with_calls(calls)
            return tuple(found)
    names = ", ".join(policy.name for policy in found) or "no policies"
    raise PolicyError(
        f"none of the policies takes a budget ({names}); use one of {', '.join(list_budgeted())}"
    )


def planner_of(policies: Sequence[Policy]) -> Policy:
    """The part that plans.

    Raises:
        PolicyError: There is none.
    """
    for part in flatten(policies):
        if isinstance(part, Planner):
            return part
    raise PolicyError("none of the policies plans ahead; there is nothing to replay")


def with_steps(policies: Sequence[Policy], steps: Sequence[int]) -> tuple[Policy, ...]:
    """The parts of the policies with the planner replaced by a list of computed steps.

    Raises:
        PolicyError: There is no planner, or another part reads its plan.
    """
    planner = planner_of(policies)
    parts = flatten(policies)
    for part in parts:
        if any(getattr(part, f.name, None) is planner for f in fields(part)):
            raise PolicyError(
                f"{part!r} reads the plan of {planner.name}, whose steps can therefore not be "
                "moved; measure without refining"
            )
    (fixed,) = build_policies([{"skip_policy": {"steps": list(steps)}}])
    return tuple(fixed if part is planner else part for part in parts)


# ------------------------------------------------------------------------------- replays
@dataclass(slots=True)
class Replays:
    """Runs against one full run, counted.

    Attributes:
        setting: What they share.
        full: The full run.
        spent: Network calls of each branch and batch so far.
    """

    setting: ReplaySetting
    full: Samples
    spent: int

    @classmethod
    def of(cls, setting: ReplaySetting, num_steps: int) -> Replays:
        """With the full run made."""
        return cls(setting, setting.run(()), num_steps)

    def quality(self, policies: Sequence[Policy], calls: int) -> tuple[Tensor, float]:
        """PSNR of each sample, and seconds of a request."""
        result = self.setting.run(policies)
        self.spent += calls
        return psnr(result.samples, self.full.samples), result.seconds / len(result.traces)


def cost_of(calls: Sequence[int], num_steps: int, refine: int) -> int:
    """Network calls of each branch and batch that measuring takes at most, said in advance.

    Example:
        >>> cost_of([25, 12], num_steps=50, refine=10)
        457
    """
    return num_steps + sum((1 + refine) * number for number in calls)


def measure(
    setting: ReplaySetting,
    policies: Sequence[Policy],
    num_steps: int,
    calls: Sequence[int],
    refine: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> MeasuredFront:
    """Replay the plans of several numbers of calls, and refine each with so many trials.

    Args:
        setting: Model, prompts and how to sample.
        policies: One of them takes a budget; the others stand beside it in every replay.
        num_steps: Steps of the schedule.
        calls: Numbers of network calls.
        refine: Trials of moved steps for each number of calls; 0 refines nothing.
        progress: Told what runs.

    Raises:
        PolicyError: None of the policies takes a budget, or another part reads its plan.
        InputError: No numbers of calls, or fewer than two of them different.
    """
    wanted = sorted({*calls})
    if not wanted or wanted[0] < 1 or wanted[-1] >= num_steps or refine < 0:
        raise InputError(
            f"calls is {list(calls)} and refine {refine}; give numbers from 1 to {num_steps - 1}, "
            "and at least 0 trials"
        )
    plans: dict[tuple[int, ...], tuple[float, tuple[Policy, ...]]] = {}
    for number in wanted:
        chosen = for_calls(policies, number)
        found = forecast(chosen, num_steps)
        plans[found.computed] = (found.facts.get("predicted", 1.0 / number), chosen)
    progress("full run")
    replays = Replays.of(setting, num_steps)
    first: list[tuple[Tensor, float]] = []
    last: list[tuple[tuple[int, ...], float]] = []
    for steps, (_, chosen) in plans.items():
        progress(f"{len(steps)} calls")
        first.append(replays.quality(chosen, len(steps)))
        last.append(refined(replays, chosen, steps, float(first[-1][0].mean()), refine))
    parts = flatten(for_calls(policies, wanted[0]))
    return MeasuredFront(
        steps=tuple(plans),
        refined=tuple(steps for steps, _ in last),
        predicted=tuple(predicted for predicted, _ in plans.values()),
        psnr=tuple(float(values.mean()) for values, _ in first),
        psnr_std=tuple(float(values.std(correction=0)) for values, _ in first),
        refined_psnr=tuple(quality for _, quality in last),
        seconds=(
            *(seconds for _, seconds in first),
            replays.full.seconds / max(1, len(replays.full.traces)),
        ),
        batch=min(setting.batch, len(setting.prompts)),
        device=device_facts(resolve_device(setting.device, devices=1)),
        planner=planner_of(parts).name,
        unit=unit_of(planner_of(parts)),
        policies=", ".join(part.name for part in parts),
        spent=replays.spent,
    )


def refined(
    replays: Replays,
    policies: Sequence[Policy],
    steps: tuple[int, ...],
    quality: float,
    trials: int,
) -> tuple[tuple[int, ...], float]:
    """A plan after so many trials of moved steps, and its mean PSNR.

    A move is kept only where the mean PSNR over the calibration samples rises, so that the plan is
    never worse there than the one it started from.

    Args:
        replays: Runs them.
        policies: With the plan among them.
        steps: The plan.
        quality: Its mean PSNR.
        trials: Most runs.
    """
    best = steps
    search = moves(best)
    tried = {best}
    for _ in range(trials):
        candidate = next((c for c in search if c not in tried), None)
        if candidate is None:
            break
        tried.add(candidate)
        found, _ = replays.quality(with_steps(policies, candidate), len(candidate))
        if float(found.mean()) > quality:
            best, quality = candidate, float(found.mean())
            search = moves(best)
    return best, quality


def moves(steps: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Plans with one computed step moved, nearest moves first; the first and last stay.

    The steps that stand between the longest gaps come first.

    Example:
        >>> list(moves((0, 2, 4)))
        [(0, 1, 4), (0, 3, 4)]
    """
    inner = sorted(range(1, len(steps) - 1), key=lambda k: (steps[k - 1] - steps[k + 1], k))
    widest = max((b - a for a, b in pairwise(steps)), default=1)
    for distance in range(1, widest):
        for place in inner:
            for moved in (steps[place] - distance, steps[place] + distance):
                if steps[place - 1] < moved < steps[place + 1]:
                    yield (*steps[:place], moved, *steps[place + 1 :])


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation; equal values share their mean rank.

    Example:
        >>> rank_correlation([1.0, 2.0, 3.0], [10.0, 30.0, 20.0])
        0.5
    """
    first, second = ranks(a), ranks(b)
    middle = (len(a) - 1) / 2
    both = sum((x - middle) * (y - middle) for x, y in zip(first, second, strict=True))
    spread = math.sqrt(
        sum((x - middle) ** 2 for x in first) * sum((y - middle) ** 2 for y in second)
    )
    return both / spread if spread else math.nan


def ranks(values: Sequence[float]) -> list[float]:
    """The rank of each value, from 0."""
    order: Mapping[float, float] = {
        value: sum(other < value for other in values) + (values.count(value) - 1) / 2
        for value in values
    }
    return [order[value] for value in values]
