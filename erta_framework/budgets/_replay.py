"""Plans replayed on calibration samples: what each number of network calls costs and gives.

A planner predicts; this measures. The full run and every plan are sampled from the same noise, and
the result is kept in the profile, so that a budget may be asked for in dB or in seconds. How many
network calls all this takes is known beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from erta_framework.budgets._forecast import forecast
from erta_framework.budgets._listed_steps import with_steps
from erta_framework.budgets._measured_front import MeasuredFront, device_facts
from erta_framework.budgets._measured_tables import EXACT, FULL
from erta_framework.budgets._planner import with_calls
from erta_framework.budgets._refinement import search_moves
from erta_framework.budgets._step_schedule import StepSchedule
from erta_framework.calibration import Solution
from erta_framework.errors import CapabilityError, InputError
from erta_framework.metrics import psnr
from erta_framework.plugins import Policy, flatten
from erta_framework.sampling import Sampler, Samples, TextModel, resolve_device


class Replayer(Protocol):
    """What samples a replay: any `TextSampler`, or a pipeline that holds its model."""

    def sample(self, model: Any, prompts: Sequence[str], *, seed: int = 0) -> Samples: ...


@runtime_checkable
class SolvingReplayer(Replayer, Protocol):
    """One that can solve its samples exactly as well."""

    def solve(
        self, model: Any, prompts: Sequence[str], *, seed: int = 0, substeps: int = 8
    ) -> Solution: ...


MakeSampler = Callable[[Sequence[Policy]], Replayer]
"""A sampler with these policies; the same run in everything else."""


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
        solution: The exact solution of the samples, if quality is measured to it; see
            `with_solution`. None measures to the full run.
    """

    sampler: MakeSampler
    model: TextModel | None
    prompts: Sequence[str]
    seed: int = 0
    batch: int = 16
    device: str = "auto"
    solution: Solution | None = None

    def with_solution(self, substeps: int = 8) -> ReplaySetting:
        """The same setting, with quality measured to the exact solution of the samples.

        Args:
            substeps: Steps of the solution for each step of the schedule; even.

        Raises:
            CapabilityError: What the sampler integrates cannot be divided into finer steps.
        """
        sampler = self.sampler(())
        if not isinstance(sampler, SolvingReplayer):
            raise CapabilityError(
                f"{type(sampler).__name__} does not solve samples exactly, so quality cannot be "
                "measured to the exact solution; measure to the full run"
            )
        found = sampler.solve(self.model, self.prompts, seed=self.seed, substeps=substeps)
        return replace(self, solution=found)

    def run(self, policies: Sequence[Policy]) -> Samples:
        """The samples under these policies."""
        return self.sampler(policies).sample(self.model, self.prompts, seed=self.seed)


def own_loop(sampler: Sampler) -> MakeSampler:
    """Runs of the own loop that are like this sampler's but for their policies."""
    return lambda policies: sampler.with_policies(policies, callbacks=())


@dataclass(slots=True)
class Replays:
    """Runs against one full run or its exact solution, counted.

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
        solving = 0 if setting.solution is None else setting.solution.calls
        return cls(setting, setting.run(()), num_steps + solving)

    @property
    def reference(self) -> Tensor:
        """What quality is measured to."""
        solution = self.setting.solution
        return self.full.samples if solution is None else solution.samples

    def measure_quality(self, policies: Sequence[Policy], calls: int) -> tuple[Tensor, float]:
        """PSNR of each sample, and seconds of a request."""
        result = self.setting.run(policies)
        self.spent += calls
        return psnr(result.samples, self.reference), result.seconds / len(result.traces)

    def refine_steps(
        self, policies: Sequence[Policy], steps: tuple[int, ...], quality: float, trials: int
    ) -> tuple[tuple[int, ...], float]:
        """A plan after so many replays of moved steps, and its mean PSNR; see `search_moves`.

        Args:
            policies: With the planner among them.
            steps: Computed steps of the plan.
            quality: Its mean PSNR.
            trials: Most replays.

        Raises:
            PolicyError: Another part reads the plan.
        """

        def judge(moved: tuple[int, ...]) -> float:
            values, _ = self.measure_quality(with_steps(policies, moved), len(moved))
            return float(values.mean())

        return search_moves(steps, quality, trials, judge)


def count_replay_calls(calls: Sequence[int], num_steps: int, refine: int) -> int:
    """Network calls of each branch and batch that measuring takes at most, said in advance.

    Example:
        >>> count_replay_calls([25, 12], num_steps=50, refine=10)
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
    substeps: int = 0,
) -> MeasuredFront:
    """Replay the plans of several numbers of calls, and refine each with so many trials.

    Args:
        setting: Model, prompts and how to sample.
        policies: One of them takes a budget; the others run with it in every replay.
        num_steps: Steps of the schedule.
        calls: Numbers of network calls.
        refine: Trials of moved steps for each number of calls; 0 refines nothing.
        progress: Called with the name of each run before it starts.
        substeps: Measure to the exact solution, of so many steps for each step; even. 0 measures to
            what the setting says.

    Raises:
        CapabilityError: The samples cannot be solved exactly.
        PolicyError: None of the policies takes a budget, or another part reads its plan.
        InputError: There are no numbers of calls, or one is out of range.
    """
    wanted = sorted({*calls})
    if not wanted or wanted[0] < 1 or wanted[-1] >= num_steps or refine < 0:
        raise InputError(
            f"calls is {list(calls)} and refine {refine}; give numbers from 1 to {num_steps - 1}, "
            "and at least 0 trials"
        )
    # two numbers of calls may come to the same plan, which is then replayed once
    plans: dict[tuple[int, ...], tuple[StepSchedule, tuple[Policy, ...]]] = {}
    for number in wanted:
        chosen = with_calls(policies, number)
        schedule = forecast(chosen, num_steps)
        if schedule.predicted is None:  # fewer calls are worse
            schedule = replace(schedule, predicted=1.0 / number)
        plans[schedule.computed] = schedule, chosen
    if substeps:
        progress("exact solution")
        setting = setting.with_solution(substeps)
    progress("full run")
    replays = Replays.of(setting, num_steps)
    first: list[tuple[Tensor, float]] = []
    last: list[tuple[tuple[int, ...], float]] = []
    for steps, (_, chosen) in plans.items():
        progress(f"{len(steps)} calls")
        first.append(replays.measure_quality(chosen, len(steps)))
        last.append(replays.refine_steps(chosen, steps, float(first[-1][0].mean()), refine))
    schedule, chosen = next(iter(plans.values()))
    return MeasuredFront(
        steps=tuple(plans),
        refined=tuple(steps for steps, _ in last),
        predicted=tuple(each.predicted or 0.0 for each, _ in plans.values()),
        psnr=tuple(float(values.mean()) for values, _ in first),
        psnr_std=tuple(float(values.std(correction=0)) for values, _ in first),
        refined_psnr=tuple(quality for _, quality in last),
        seconds=(
            *(seconds for _, seconds in first),
            replays.full.seconds / max(1, len(replays.full.traces)),
        ),
        batch=min(setting.batch, len(setting.prompts)),
        device=device_facts(resolve_device(setting.device, devices=1)),
        planner=schedule.policy,
        unit=schedule.unit,
        policies=", ".join(part.name for part in flatten(chosen)),
        spent=replays.spent,
        target=FULL if setting.solution is None else EXACT,
    )
