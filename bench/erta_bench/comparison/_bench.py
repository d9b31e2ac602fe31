"""All contenders at equal work, in network calls, through a model's unmodified pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from rich.console import Console

from erta_bench.comparison._choice import choose_contenders, is_offered, list_missing_rows
from erta_bench.comparison._contender import Contender
from erta_bench.comparison._memory import MemoryMeter
from erta_bench.comparison._own_runner import is_in_own_loop, make_own_runner
from erta_bench.comparison._preparation import Preparation
from erta_bench.comparison._rows import ContenderRow, make_contender_record, make_full_record
from erta_bench.comparison._runner import Prepared, Runner
from erta_bench.comparison.contenders import CONTENDERS
from erta_bench.core import Bench
from erta_bench.other_caches import RIVALS, read_rival_versions
from erta_bench.setting import (
    SEEDS_APART,
    RunProgress,
    Setting,
    describe_setting,
    require_measurable,
)
from erta_framework import CFG
from erta_framework.environment import collect_versions
from erta_framework.errors import BudgetError, InputError
from erta_framework.optional_dependencies import MissingExtraError
from erta_framework.plugins import policies
from erta_integrations.diffusers.bundled import pipeline_model

COLUMNS = {
    "budget": "calls",
    "name": "policies",
    "status": "status",
    "calls": "made",
    "work": "work",
    "processor_speedup": "speed",
    "processor_efficiency": "eff.",
    "psnr_mean": "PSNR",
    "psnr_std": "std",
    "ssim_mean": "SSIM",
}
"""The other keys are in the JSON and in the report."""


def compare_policies(
    setting: Setting,
    *,
    calls: Sequence[int] = (25, 17),
    scheduler: str = "",
    seeds: int = 3,
    seed: int = 0,
    rows: Sequence[str] = (),
    console: Console | None = None,
    command: str = "policies",
) -> Bench:
    """Measure every contender at every number of calls.

    Args:
        setting: Model, prompts and what else all rows share; the guidance is a `CFG`.
        calls: Work of each branch, in network calls.
        scheduler: Scheduler of all but some plain rows; empty for the model's default.
        seeds: How often everything is repeated with other noise; calibrated and solved once.
        seed: First seed.
        rows: Names of contenders, or of policies in them; empty means all.
        console: Where to show a progress bar; None shows none.
        command: Named in the result.

    Raises:
        InputError: What cannot be measured; see `erta_bench.setting.require_measurable`.
            The model says no pipeline, or has no such scheduler.
    """
    bench = compare_contenders(
        setting,
        choose_contenders(rows, CONTENDERS),
        calls=calls,
        scheduler=scheduler,
        seeds=seeds,
        seed=seed,
        console=console,
        command=command,
        columns=COLUMNS,
    )
    return replace(bench, rows=[*bench.rows, *([] if rows else list_missing_rows(policies()))])


def compare_contenders(
    setting: Setting,
    contenders: Sequence[Contender],
    *,
    calls: Sequence[int],
    scheduler: str,
    seeds: int,
    seed: int,
    console: Console | None,
    command: str,
    columns: Mapping[str, str],
    search_prompts: int = 2,
) -> Bench:
    """Measure contenders at every number of calls.

    Args:
        setting: Model, prompts and what else all rows share; the guidance is a `CFG`.
        contenders: The rows; plain ones whose scheduler the model does not have are left out.
        calls: Work of each branch, in network calls.
        scheduler: Scheduler of all but some plain rows; empty for the model's default.
        seeds: How often everything is repeated with other noise.
        seed: First seed.
        console: Where to show a progress bar; None shows none.
        command: Named in the result.
        columns: Keys that the table shows, with their headings.
        search_prompts: Calibration prompts that a search for a setting runs.

    Raises:
        InputError: What cannot be measured.
    """
    require_measurable(setting, calls, seeds)
    preparation = make_preparation(setting, scheduler, search_prompts)
    runner = preparation.runner
    meter = MemoryMeter(runner, setting.calibration[:1])
    budgets = tuple(dict.fromkeys(calls))
    contenders = [each for each in contenders if is_offered(each, runner)]
    rows = [ContenderRow(each, budget) for budget in budgets for each in contenders]
    work = seeds * setting.batches * (2 * setting.steps + sum(row.budget for row in rows))
    full = ContenderRow(Contender(name="full", group="plain"), setting.steps)
    with RunProgress(work, console) as bar:
        for row in rows:
            bar.set_title(f"{row.budget} calls, solving: {row.contender.name}")
            prepare_row(preparation, meter, row)
        for number in range(seeds):
            first = seed + number * SEEDS_APART
            # another order each time, so that no row always runs on a warmer or busier machine
            turn = rows[:: -1 if number % 2 else 1]
            run_seed_set(preparation, setting, bar, first, turn, full)
    found = [make_full_record(full, setting.steps)]
    found += [make_contender_record(row, full, preparation) for row in rows]
    facts = {
        **describe_setting(setting, seed, list(preparation.profiles.values())[:1]),
        "model": runner.through.name,
        "pipeline": runner.through.pipeline,
        "scheduler": runner.scheduler,
        "solving_samples": preparation.search_prompts,
    }
    return Bench(
        command,
        found,
        columns,
        facts,
        section="budget",
        versions={**collect_versions(), **read_rival_versions()},
    )


def make_preparation(setting: Setting, scheduler: str = "", search_prompts: int = 2) -> Preparation:
    """What prepares and runs the rows of a setting.

    Raises:
        InputError: The model says no pipeline or has no such scheduler, or the guidance is no CFG.
    """
    if is_in_own_loop(setting.model):
        own = make_own_runner(setting, scheduler)
        return Preparation(own, setting.calibration, search_prompts)
    through = pipeline_model(setting.model)
    if not isinstance(setting.guidance, CFG):
        raise InputError(
            f"guidance is {setting.guidance!r}: a pipeline has classifier-free guidance; "
            "give guidance=CFG(...)"
        )
    through.make_scheduler(scheduler or None)
    runner = Runner(
        setting.model,  # type: ignore[arg-type]
        steps=setting.steps,
        scheduler=scheduler or through.default,
        guidance_scale=setting.guidance.scale,
        batch_size=setting.batch_size,
    )
    return Preparation(runner, setting.calibration, search_prompts)


def prepare_row(preparation: Preparation, meter: MemoryMeter, row: ContenderRow) -> None:
    """Calibrate, search and weigh; what cannot be done is the row's status.

    A contender that cannot do so little work gets the least that it can do, as a search would.
    """
    rival = row.contender.rival
    try:
        if rival and RIVALS[rival].absence:
            raise MissingExtraError(RIVALS[rival].absence)
        if row.contender.oracle:  # prepared for each seed set, on its samples
            row.prepared = Prepared(row.contender, row.budget)
            return
        try:
            row.prepared = preparation.prepare(row.contender, row.budget)
            row.bytes_held = meter.measure(row.prepared)
        except BudgetError as error:
            row.prepared = preparation.prepare(row.contender, error.least)
            row.bytes_held = meter.measure(row.prepared)
    except Exception as error:  # whatever another project's code raises becomes the row's status
        row.fail(error)


def run_seed_set(
    preparation: Preparation,
    setting: Setting,
    bar: RunProgress,
    seed: int,
    rows: Iterable[ContenderRow],
    full: ContenderRow,
) -> None:
    """Run everything once, from noise of this seed on; the full run first and last."""
    runner = preparation.runner
    plain = Prepared(full.contender, setting.steps)
    bar.set_title("full")
    reference = runner.run(plain, setting.held_out, seed, [bar])
    bar.set_title("fine solution")
    exact = runner.sample_fine_solution(setting.held_out, seed).samples
    full.add(reference, reference, exact, runner.through)
    for row in rows:
        if row.prepared is None:
            continue
        bar.set_title(f"{row.budget} calls: {row.contender.name}")
        try:
            prompts = setting.held_out
            if row.contender.oracle:
                prompts = prompts[: setting.batch_size]
                row.prepared = preparation.prepare_oracle(row.contender, row.budget, prompts, seed)
            try:
                result = runner.run(row.prepared, prompts, seed, [bar])
            except BudgetError as error:  # where the meter did not have to run it at this budget
                row.prepared = preparation.prepare(row.contender, error.least)
                result = runner.run(row.prepared, prompts, seed, [bar])
        except Exception as error:  # as above
            row.fail(error)
            continue
        row.add(result, reference, exact, runner.through)
    bar.set_title("full, again")
    # every speed-up is relative to it, and the machine may have slowed since
    again = runner.run(plain, setting.held_out, seed, [bar])
    full.outcome.add_time(again.samples, again.processor)
