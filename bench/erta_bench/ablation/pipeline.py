"""The ablation of `erta bench ablation` through an unmodified `WanPipeline`, beside the own loop.

The own loop can make the same steps as the flow-matching Euler scheduler, on the pipeline's grid.
Both then run every row from a calibration of their own, and each row says how far their samples are
apart. UniPC, Wan's default, is measured through the pipeline alone. A policy that UniPC cannot
serve is refused, and its row says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from rich.console import Console
from torch import Tensor

from erta_bench.ablation._loops import OWN_LOOP, PipelineSetting, SameGridSetting
from erta_bench.ablation._variants import Variant, make_ladder
from erta_bench.core import TWO_AXES, Bench, Measurement, Row, Value, as_finite, make_record
from erta_bench.setting import (
    CALIBRATION_SEEDS,
    ExactSolutions,
    Reference,
    RunProgress,
    Setting,
    calibrate_residuals,
    describe_setting,
    require_measurable,
)
from erta_framework.calibration import Profile, Solution
from erta_framework.environment import describe_machine
from erta_framework.errors import CapabilityError
from erta_framework.sampling import FlowEuler

COLUMNS = {
    "scheduler": "scheduler",
    "budget": "calls",
    "name": "policies",
    "status": "status",
    "calls": "made",
    "work": "work",
    **TWO_AXES,
    "own_psnr_mean": "own loop",
    "identical": "same bits",
}
NAMES = {"flow_euler": "plain Euler", "unipc": "plain UniPC"}


@dataclass(frozen=True, slots=True)
class LoopRun:
    """The pipeline or the own loop, with a calibration and a full run of its own.

    Attributes:
        profile: Its calibration.
        full: Its full run, which its rows are measured against.
    """

    profile: Profile
    full: Reference

    @classmethod
    def start(
        cls, setting: Setting, seed: int, bar: RunProgress, known: Solution | None = None
    ) -> LoopRun:
        """Calibrate, and make the full run; the exact solution may be known from another loop."""
        profile = calibrate_residuals(setting, bar, CALIBRATION_SEEDS + seed)
        return cls(profile, Reference(setting, seed, bar, known))

    def run(self, row: Variant) -> tuple[Measurement, Tensor]:
        """One row, measured against this loop's own full run.

        Raises:
            CapabilityError: The sampler cannot serve a policy of the row.
        """
        title = f"{row.budget} calls: {row.name}"
        return self.full.measure(title, row.build(self.profile), row.steps)


def run_pipeline_ablation(
    setting: Setting,
    *,
    calls: Sequence[int] = (25, 17, 12),
    schedulers: Sequence[str] = ("flow_euler", "unipc"),
    seed: int = 0,
    console: Console | None = None,
    command: str = "pipeline",
) -> Bench:
    """Run the ablation through the pipeline, under each scheduler.

    Args:
        setting: Model, prompts and what else all rows share.
        calls: Network calls of each branch.
        schedulers: Names of `NAMES`.
        seed: First seed.
        console: Where to show a progress bar; None shows none.
        command: Named in the result.

    Raises:
        InputError: What cannot be measured; see `erta_bench.setting.require_measurable`.
    """
    require_measurable(setting, calls, seed_sets=1)
    rows: list[Row] = []
    profiles: list[Profile] = []
    solutions = ExactSolutions(setting.substeps)
    shared = {name: getattr(setting, name) for name in Setting.__dataclass_fields__}
    for scheduler in dict.fromkeys(schedulers):
        table = make_table(scheduler, tuple(dict.fromkeys(calls)), setting.steps)
        twice = 2 if scheduler == OWN_LOOP else 1
        with RunProgress(twice * count_steps(setting, table), console) as bar:
            through = PipelineSetting(scheduler=scheduler, **shared)
            piped = LoopRun.start(through, seed, bar)
            known = piped.full.solution  # both loops approach it
            own = LoopRun.start(SameGridSetting(**shared), seed, bar, known) if twice == 2 else None
            rows += measure_table(scheduler, piped, own, table)
        profiles.append(piped.profile)
        solutions.add(piped.full.solution)
    facts = describe_setting(setting, seed, profiles[:1]) | solutions.describe()
    machine = describe_machine(setting.device)
    return Bench(command, rows, COLUMNS, facts, section="budget", machine=machine)


def make_table(scheduler: str, calls: Sequence[int], steps: int) -> list[Variant]:
    """The ladder of the ablation, without the solver that only the own loop has."""
    return [
        replace(row, name=NAMES[scheduler] if row.name == "plain Euler" else row.name)
        for budget in calls
        for row in make_ladder(budget, steps)
        if row.solver == FlowEuler()
    ]


def count_steps(setting: Setting, table: Sequence[Variant]) -> int:
    """Computed steps of one loop, over its batches."""
    full = setting.steps * setting.calibration_batches
    return (setting.steps + sum(row.budget for row in table)) * setting.batches + full


def measure_table(
    scheduler: str, piped: LoopRun, own: LoopRun | None, table: Sequence[Variant]
) -> list[Row]:
    """The full run and every row of one scheduler."""
    full = piped.full
    common: dict[str, Value] = {"scheduler": scheduler, "status": "measured", "detail": ""}
    facts: dict[str, Value] = {"group": "plain", "budget": None, "steps": full.setting.steps}
    pair = None if own is None else (own.full.outcome, own.full.samples.samples)
    found: list[Row] = [
        {
            **make_record("full", full.outcome, full.outcome, None, facts),
            **common,
            **compare_loops(pair, full.samples.samples),
        }
    ]
    for row in table:
        facts = {"group": row.group, "budget": row.budget, "steps": row.steps}
        try:
            outcome, samples = piped.run(row)
        except CapabilityError as error:
            refused: dict[str, Value] = {"status": "refused", "detail": explain_refusal(error)}
            found.append({"name": row.name, **facts, **common, **refused})
            continue
        pair = None if own is None else own.run(row)
        found.append(
            {
                **make_record(row.name, outcome, full.outcome, None, facts),
                **common,
                **compare_loops(pair, samples),
            }
        )
    return found


def compare_loops(pair: tuple[Measurement, Tensor] | None, samples: Tensor) -> dict[str, Value]:
    """The own loop's PSNR, and how far its samples are from the pipeline's."""
    if pair is None:
        return {"own_psnr_mean": None, "largest_difference": None, "identical": None}
    outcome, other = pair
    return {
        "own_psnr_mean": as_finite(outcome.psnr[0].mean()),
        "largest_difference": (samples - other).abs().max().item(),
        "identical": torch.equal(samples, other),
    }


def explain_refusal(error: CapabilityError) -> str:
    """What an error says, without the settings of the policy that it names."""
    said = str(error)
    start, end = said.find("("), said.find(") requires ")
    return said if end < 0 else f"{said[:start]} {said[end + 2 :]}"
