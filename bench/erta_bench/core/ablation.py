"""The paper's ablation on any text model: uniform, + policy, + time, + rectification.

Every row is compared with the full run of the same prompts from the same noise. Profiles are
calibrated on other prompts and other noise than those measured, once a seed set and for all
numbers of calls; rows that run the same thing are run once.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from erta_bench.core.outcome import Outcome, record
from erta_bench.core.report import Bench, Value
from erta_bench.core.variants import Key, Variant, variants
from erta_framework.calibration import Profile
from erta_framework.config import build_policies
from erta_framework.errors import InputError
from erta_framework.plugins import Policy, flatten
from erta_framework.sampling import (
    CFG,
    Callback,
    FlowEuler,
    Guidance,
    Sampler,
    Samples,
    Solver,
    TextModel,
    TextSampler,
)
from erta_framework.session import StepTrace

COLUMNS = {
    "budget": "calls",
    "name": "policies",
    "calls": "made",
    "speedup": "speed",
    "psnr_mean": "PSNR",
    "psnr_std": "std",
    "gain_mean": "gain",
    "ssim_mean": "SSIM",
}
SEEDS_APART = 10_000
"""Distance of seed sets, more than the samples of one."""
CALIBRATION_SEEDS = 1_000_000
"""Where the seeds of calibration start, above those of every seed set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all rows of an ablation share.

    Attributes:
        model: The model.
        calibration: Prompts to calibrate on.
        held_out: Prompts that are measured.
        steps: Steps of the full run.
        guidance: How branches combine.
        batch_size: Samples a batch.
    """

    model: TextModel
    calibration: Sequence[str]
    held_out: Sequence[str]
    steps: int = 50
    guidance: Guidance = field(default_factory=lambda: CFG(scale=3.0))
    batch_size: int = 16

    def sampler(
        self,
        policies: Iterable[Policy] = (),
        steps: int | None = None,
        solver: Solver | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> TextSampler:
        """A sampler with these policies; the rest is shared."""
        return Sampler(
            tuple(policies),
            callbacks,
            solver=solver,
            guidance=self.guidance,
            num_steps=steps or self.steps,
            batch_size=self.batch_size,
        )


class Overall(Callback):
    """One bar over all runs; it advances with every computed step."""

    def __init__(self, total: int, console: Console | None) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console or Console(quiet=True),
        )
        self._task: TaskID = self._progress.add_task("", total=total)

    def __enter__(self) -> Overall:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def title(self, text: str) -> None:
        """What runs now."""
        self._progress.update(self._task, description=f"{text:40.40}")

    def on_step(self, step: StepTrace) -> None:
        """Advance where the network ran."""
        self._progress.update(self._task, advance=int(step.computed))


def ablation(
    setting: Setting,
    *,
    calls: Sequence[int] = (25, 17, 12),
    seed_sets: int = 3,
    seed: int = 0,
    console: Console | None = None,
    command: str = "ablation",
) -> Bench:
    """Run the ablation.

    Args:
        setting: Model, prompts and what else all rows share.
        calls: Network calls of each branch; the open choices are compared at the middle one.
        seed_sets: How often everything is repeated with other noise and another calibration.
        seed: First seed.
        console: Where to show a progress bar; None shows none.
        command: Named in the result.

    Raises:
        InputError: No prompts, calibration and measured prompts overlap, no numbers of calls or
            one that the schedule cannot have, or frames too small for SSIM.

    Example:
        >>> model = AffineFlow((3, 2, 12, 12))  # doctest: +SKIP
        >>> setting = Setting(model=model, calibration=["a", "b"], held_out=["c", "d"])
        >>> ablation(setting, calls=[10], seed_sets=1).rows[0]["name"]  # doctest: +SKIP
        'full'
    """
    checked(setting, calls, seed_sets)
    rows = variants(tuple(dict.fromkeys(calls)), setting.steps)
    unique: dict[Key, Variant] = {}
    for row in rows:
        unique.setdefault(row.key, row)
    batches = -(-len(setting.held_out) // setting.batch_size)
    fit = -(-len(setting.calibration) // setting.batch_size)
    work = (2 * setting.steps + sum(row.budget for row in unique.values())) * batches
    full = Outcome()
    outcomes = {key: Outcome() for key in unique}
    profiles: list[Profile] = []
    with Overall(seed_sets * (work + setting.steps * fit), console) as bar:
        for number in range(seed_sets):
            first = seed + number * SEEDS_APART
            profiles.append(calibrated(setting, bar, CALIBRATION_SEEDS + first))
            # another order each time, so that no row always runs on a warmer or busier machine
            turn = list(unique.items())[:: -1 if number % 2 else 1]
            run_set(setting, bar, profiles[-1], first, full, outcomes, dict(turn))
    shared = {key: row.name for key, row in unique.items()}
    base = {row.budget: outcomes[row.key] for row in rows if row.name == "uniform"}
    facts: dict[str, Value] = {
        "group": "plain",
        "budget": None,
        "steps": setting.steps,
        "same_as": None,
        "solver": repr(FlowEuler()),
        "policies": "",
    }
    records = [record("full", full, full, None, facts)]
    for row in rows:
        facts = {
            "group": row.group,
            "budget": row.budget,
            "steps": row.steps,
            "same_as": None if shared[row.key] == row.name else shared[row.key],
            "solver": repr(row.solver),
            "policies": "; ".join(repr(p) for p in flatten(row.build(profiles[-1]))),
        }
        records.append(record(row.name, outcomes[row.key], full, base[row.budget], facts))
    facts = shared_settings(setting, seed, profiles)
    return Bench(command, records, COLUMNS, facts, section="budget")


def checked(setting: Setting, calls: Sequence[int], seed_sets: int) -> None:
    """Refuse what cannot be measured.

    Raises:
        InputError: Names the value and what would work.
    """
    if not setting.calibration or not setting.held_out:
        raise InputError(
            f"{len(setting.calibration)} calibration prompts and {len(setting.held_out)} measured "
            "ones; give at least one of each"
        )
    common = sorted(set(setting.calibration) & set(setting.held_out))
    if common:
        raise InputError(f"the prompt {common[0]!r} is calibrated on and measured; keep them apart")
    bad = [number for number in calls if not 2 <= number <= setting.steps]
    if bad or not calls:
        raise InputError(
            f"calls is {list(calls)}; give numbers from 2 to the {setting.steps} steps"
        )
    if seed_sets < 1 or len(setting.held_out) > SEEDS_APART:
        raise InputError(
            f"{seed_sets} seed sets of {len(setting.held_out)} prompts; give at least one set and "
            f"at most {SEEDS_APART} prompts"
        )


def calibrated(setting: Setting, bar: Overall, seed: int) -> Profile:
    """A residual profile on the calibration prompts."""
    bar.title("calibrating")
    (profiler,) = build_policies(["residual_profiler"])
    sampler = setting.sampler(callbacks=[bar])
    return sampler.calibrate(setting.model, setting.calibration, seed=seed, profiler=profiler)


def run_set(
    setting: Setting,
    bar: Overall,
    profile: Profile,
    seed: int,
    full: Outcome,
    outcomes: dict[Key, Outcome],
    unique: dict[Key, Variant],
) -> None:
    """Run everything once on one seed set, the full run first and last."""
    branches = len(setting.guidance.names)

    def run(title: str, sampler: TextSampler) -> tuple[Samples, float]:
        bar.title(title)
        start = time.process_time()
        result = sampler.sample(setting.model, setting.held_out, seed=seed)
        return result, time.process_time() - start

    reference, processor = run("full", setting.sampler(callbacks=[bar]))
    full.add(reference, reference, processor, branches)
    for key, row in unique.items():
        sampler = setting.sampler(row.build(profile), row.steps, row.solver, [bar])
        result, processor = run(f"{row.budget} calls: {row.name}", sampler)
        outcomes[key].add(result, reference, processor, branches)
    # the full run again: every speed-up is relative to it, and the machine may have slowed since
    again, processor = run("full", setting.sampler(callbacks=[bar]))
    full.time(again, processor)


def shared_settings(setting: Setting, seed: int, profiles: Sequence[Profile]) -> dict[str, Value]:
    """What all rows share."""
    return {
        **{f"model.{key}": value for key, value in setting.model.fingerprint().items()},
        "guidance": repr(setting.guidance),
        "batch_size": setting.batch_size,
        "first_seed": seed,
        "calibration_prompts": len(setting.calibration),
        "calibration_samples": sum(profile.samples for profile in profiles),
    }
