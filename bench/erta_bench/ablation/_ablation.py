"""The paper's ablation on any text model: uniform, + policy, + time, + rectification.

Every row is compared with the full run and the exact solution of the same prompts from the same
noise. Profiles are calibrated on other prompts and other noise than those measured, once a seed set
and for all numbers of calls; rows that run the same thing are run once.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from erta_bench.ablation._variants import Key, Variant, make_variants
from erta_bench.core import TWO_AXES, Bench, Measurement, Value, make_record
from erta_bench.setting import (
    CALIBRATION_SEEDS,
    SEEDS_APART,
    ExactSolutions,
    RunProgress,
    Setting,
    calibrate_residuals,
    describe_setting,
    require_measurable,
)
from erta_framework.calibration import Profile, Solution
from erta_framework.environment import describe_machine
from erta_framework.plugins import flatten
from erta_framework.sampling import FlowEuler, Samples, TextSampler

COLUMNS = {
    "budget": "calls",
    "name": "policies",
    "calls": "made",
    "work": "work",
    "processor_speedup": "speed",
    **TWO_AXES,
    "gain_mean": "gain",
    "ssim_mean": "SSIM",
}


def run_ablation(
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
        >>> run_ablation(setting, calls=[10], seed_sets=1).rows[0]["name"]  # doctest: +SKIP
        'full'
    """
    require_measurable(setting, calls, seed_sets)
    rows = make_variants(tuple(dict.fromkeys(calls)), setting.steps)
    unique: dict[Key, Variant] = {}
    for row in rows:
        unique.setdefault(row.key, row)
    work = (2 * setting.steps + sum(row.budget for row in unique.values())) * setting.batches
    full, solutions = Measurement(), ExactSolutions(setting.substeps)
    outcomes = {key: Measurement() for key in unique}
    profiles: list[Profile] = []
    total = seed_sets * (work + setting.steps * setting.calibration_batches)
    with RunProgress(total, console) as bar:
        for number in range(seed_sets):
            first = seed + number * SEEDS_APART
            profiles.append(calibrate_residuals(setting, bar, CALIBRATION_SEEDS + first))
            # another order each time, so that no row always runs on a warmer or busier machine
            turn = list(unique.items())[:: -1 if number % 2 else 1]
            solution = run_seed_set(setting, bar, profiles[-1], first, full, outcomes, dict(turn))
            solutions.add(solution)
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
    records = [make_record("full", full, full, None, facts)]
    for row in rows:
        facts = {
            "group": row.group,
            "budget": row.budget,
            "steps": row.steps,
            "same_as": None if shared[row.key] == row.name else shared[row.key],
            "solver": repr(row.solver),
            "policies": "; ".join(repr(p) for p in flatten(row.build(profiles[-1]))),
        }
        records.append(make_record(row.name, outcomes[row.key], full, base[row.budget], facts))
    facts = describe_setting(setting, seed, profiles) | solutions.describe()
    machine = describe_machine(setting.device)
    return Bench(command, records, COLUMNS, facts, section="budget", machine=machine)


def run_seed_set(
    setting: Setting,
    bar: RunProgress,
    profile: Profile,
    seed: int,
    full: Measurement,
    outcomes: dict[Key, Measurement],
    unique: dict[Key, Variant],
) -> Solution:
    """Run everything once on one seed set, the full run first and last.

    Returns:
        The exact solution that all rows are compared with.
    """
    branches = setting.branches

    def run(title: str, sampler: TextSampler) -> tuple[Samples, float]:
        bar.set_title(title)
        result, took = setting.sample_held_out(sampler, seed)
        return result, took.processor

    reference, processor = run("full", setting.make_sampler(callbacks=[bar]))
    bar.set_title("exact solution")
    solution = setting.solve_held_out(seed)
    full.add(reference, reference, solution.samples, processor, branches)
    for key, row in unique.items():
        sampler = setting.make_sampler(row.build(profile), row.steps, row.solver, [bar])
        result, processor = run(f"{row.budget} calls: {row.name}", sampler)
        outcomes[key].add(result, reference, solution.samples, processor, branches)
    # the full run again: every speed-up is relative to it, and the machine may have slowed since
    again, processor = run("full", setting.make_sampler(callbacks=[bar]))
    full.add_time(again, processor)
    return solution
