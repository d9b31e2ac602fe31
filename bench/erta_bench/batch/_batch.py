"""Throughput of per-sample decisions: one batch of easy and hard prompts, four ways to run it.

EasyCache decides for each sample. How hard a prompt is follows from measurement: the network calls
that it takes when it is sampled alone. Every row is compared with the full run and the exact
solution of the same prompts from the same noise, in the same process. The speed that is shown is
the ratio of processor seconds, which other load disturbs less than wall seconds; the records hold
both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import pstdev

from rich.progress import Progress
from torch import Tensor

from erta_bench.batch._modes import (
    ALONE,
    MODES,
    PER_SAMPLE,
    Batch,
    BatchRun,
    BatchSetting,
    choose_mixed_batch,
    run_mode,
    sample_batch,
    solve_batch,
)
from erta_bench.core import Bench, Row, Value, as_finite, average, describe_quality
from erta_bench.setting import ExactSolutions, describe_model
from erta_framework.calibration import check_substeps
from erta_framework.environment import describe_machine
from erta_framework.errors import InputError
from erta_framework.metrics import psnr
from erta_framework.plugins import Engine
from erta_framework.sampling import FlowEuler

COLUMNS = {
    "name": "run",
    "threshold": "tau",
    "network_samples": "samples",
    "work": "work",
    "calls_mean": "calls",
    "calls_min": "least",
    "calls_max": "most",
    "processor_speedup": "speed",
    "psnr_fine_mean": "exact",
    "psnr_fine_worst": "worst",
    "psnr_mean": "full",
    "psnr_min": "least",
    "psnr_hard": "hard half",
}


def compare_modes(
    setting: BatchSetting,
    prompts: Sequence[str],
    *,
    thresholds: Sequence[float] = (0.02, 0.05),
    seed: int = 0,
    progress: bool = False,
    command: str = "batch",
) -> Bench:
    """Run a batch as it comes, and one that is mixed on purpose, in every way and threshold.

    The mixed batch is chosen by measurement: the prompts and every word of them as a prompt of its
    own are sampled with the first threshold; half of the batch are those with the fewest calls,
    half those with the most.

    Args:
        setting: Model and what else all rows share.
        prompts: Prompts of the batch as it comes.
        thresholds: Thresholds of EasyCache.
        seed: Sample k draws its noise from `seed + k`.
        progress: Show a progress bar.
        command: Named in the result.

    Returns:
        Rows `name` = `full` or a mode of `MODES`; `calls_of_samples` lists the network calls of
        each branch that each prompt took, in the order of the setting `prompts.<batch>`.

    Raises:
        InputError: Fewer than two prompts, or no threshold.
    """
    if len(prompts) < 2 or not thresholds:
        raise InputError(
            f"{len(prompts)} prompts and {len(thresholds)} thresholds; give at least 2 prompts and "
            "1 threshold"
        )
    given = Batch("as they come", tuple(prompts), tuple(range(seed, seed + len(prompts))))
    rows: list[Row] = []
    check_substeps(setting.substeps)
    solutions = ExactSolutions(setting.substeps)
    with Progress(disable=not progress) as bar:
        task = bar.add_task("choosing a mixed batch", total=1 + 2 * (3 + 4 * len(thresholds)))
        batches = [given, choose_mixed_batch(setting, given, thresholds[0])]
        bar.advance(task)
        for batch in batches:
            bar.update(task, description=f"full: {batch.name}")
            fulls = [sample_batch(setting, Engine([]), batch)]
            bar.advance(task)
            runs: dict[tuple[float, str], BatchRun] = {}
            for threshold in thresholds:
                for mode in MODES:
                    bar.update(task, description=f"{batch.name}, {threshold}: {mode}")
                    runs[threshold, mode] = run_mode(setting, mode, threshold, batch)
                    bar.advance(task)
            # the full run again: every speed is relative to it, and the machine may have slowed
            fulls.append(sample_batch(setting, Engine([]), batch))
            bar.advance(task)
            bar.update(task, description=f"exact solution: {batch.name}")
            solution = solve_batch(setting, batch)
            solutions.add(solution)
            bar.advance(task)
            rows += make_records(setting, batch, fulls, runs, solution.samples)
    facts: dict[str, Value] = {
        **describe_model(setting.model),
        "guidance": repr(setting.guidance),
        "solver": repr(FlowEuler()),
        "policy": repr(setting.engine(PER_SAMPLE, thresholds[0]).policies[0]),
        "batch_size": len(prompts),
        **solutions.describe(),
        **{f"prompts.{batch.name}": "; ".join(batch.prompts) for batch in batches},
        **{f"seeds.{batch.name}": " ".join(map(str, batch.seeds)) for batch in batches},
    }
    machine = describe_machine(setting.device)
    return Bench(command, rows, COLUMNS, facts, section="threshold", machine=machine)


def make_records(
    setting: BatchSetting,
    batch: Batch,
    fulls: Sequence[BatchRun],
    runs: Mapping[tuple[float, str], BatchRun],
    exact: Tensor,
) -> list[Row]:
    """The flat records of one batch: the full run and every mode."""
    full = fulls[0]
    wall = average([run.seconds for run in fulls])
    processor = average([run.processor for run in fulls])
    size = len(batch.prompts)
    shared: dict[str, Value] = {"batch": batch.name, "steps": setting.steps, "prompts": size}
    first: dict[str, Value] = {"name": "full", "threshold": None, **shared, **count_calls(full)}
    first |= {"seconds": wall, "processor_seconds": processor, "samples_per_second": size / wall}
    first |= describe_quality(psnr(full.samples, exact))
    rows: list[Row] = [{**first, "work": 1.0, "speedup": 1.0, "processor_speedup": 1.0}]
    for (threshold, mode), run in runs.items():
        alone = runs[threshold, ALONE]
        hardest = sorted(range(size), key=lambda k: (alone.calls[k], k))[size - size // 2 :]
        quality = psnr(run.samples, full.samples)
        same = sum(a == b for a, b in zip(run.calls, alone.calls, strict=True))
        measured: dict[str, Value] = {
            "work": run.work / full.work,
            "seconds": run.seconds,
            "processor_seconds": run.processor,
            "speedup": wall / run.seconds,
            "processor_speedup": processor / run.processor,
            "samples_per_second": size / run.seconds,
            **describe_quality(psnr(run.samples, exact)),
            "psnr_mean": as_finite(quality.mean()),
            "psnr_min": as_finite(quality.min()),
            "psnr_hard": as_finite(quality[hardest].mean()),
            "same_calls_as_alone": same,
            "difference_to_alone": float((run.samples - alone.samples).abs().max()),
        }
        named: dict[str, Value] = {"name": mode, "threshold": threshold}
        rows.append({**named, **shared, **count_calls(run), **measured})
    return rows


def count_calls(run: BatchRun) -> dict[str, Value]:
    """How much went through the network."""
    return {
        "network_calls": run.network_calls,
        "network_samples": run.network_samples,
        "calls_mean": average(run.calls),
        "calls_min": min(run.calls),
        "calls_max": max(run.calls),
        "calls_std": pstdev(run.calls),
        "calls_of_samples": " ".join(f"{number:g}" for number in run.calls),
    }
