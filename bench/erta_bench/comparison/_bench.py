"""All contenders at equal work, in network calls, through a model's unmodified pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from rich.console import Console

from erta_bench.comparison._choice import choose_contenders, is_offered, list_missing_rows
from erta_bench.comparison._contender import Contender
from erta_bench.comparison._own_runner import is_in_own_loop, make_own_runner
from erta_bench.comparison._preparation import Preparation
from erta_bench.comparison._rows import ContenderRow
from erta_bench.comparison._runner import Runner
from erta_bench.comparison._seed_sets import Comparison
from erta_bench.comparison.contenders import CONTENDERS
from erta_bench.core import TWO_AXES, Bench
from erta_bench.other_caches import read_rival_versions
from erta_bench.setting import (
    SEEDS_APART,
    ExactSolutions,
    RunProgress,
    Setting,
    require_measurable,
)
from erta_framework import CFG
from erta_framework.environment import collect_versions, describe_machine
from erta_framework.errors import InputError
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
    **TWO_AXES,
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
    keep: Callable[[Bench], object] | None = None,
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
        keep: Gets what was measured so far after each seed set, and where the run is stopped,
            marked as unfinished.

    Raises:
        InputError: What cannot be measured.
    """
    require_measurable(setting, calls, seeds)
    preparation = make_preparation(setting, scheduler, search_prompts)
    contenders = [each for each in contenders if is_offered(each, preparation.runner)]
    rows = [ContenderRow(each, budget) for budget in dict.fromkeys(calls) for each in contenders]
    compared = Comparison(setting, preparation, rows, ExactSolutions(setting.substeps), seed)

    def gather(unfinished: str = "") -> Bench:
        return Bench(
            command,
            compared.list_records(unfinished),
            columns,
            {**compared.describe(), **({"unfinished": unfinished} if unfinished else {})},
            section="budget",
            machine=describe_machine(setting.device),
            versions={**collect_versions(), **read_rival_versions()},
        )

    done = 0
    with RunProgress(compared.count_steps(seeds), console) as bar:
        compared.prepare(bar)
        try:
            for done in range(seeds):
                first = seed + done * SEEDS_APART
                if keep is not None and done:
                    keep(gather(f"{done} of {seeds} seed sets"))
                compared.run_seed_set(bar, first, backwards=done % 2 == 1)
        except BaseException:  # a person stops it
            if keep is not None and compared.full.outcome.fine:
                keep(gather(f"{done} of {seeds} seed sets, and a part of the next"))
            raise
    return gather()


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
        accelerator=setting.accelerator,
    )
    return Preparation(runner, setting.calibration, search_prompts)
