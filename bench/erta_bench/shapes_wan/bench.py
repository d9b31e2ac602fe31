"""The ablation of `erta bench ablation` through an unmodified `WanPipeline`, beside the own loop.

The flow-matching Euler scheduler is something that the own loop can do as well, given the
pipeline's grid: both run every row from a calibration of their own, and each row says how far
their samples are apart. UniPC, Wan's default, is measured through the pipeline alone; a policy
that it cannot serve is refused, and the row says so.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from rich.console import Console
from torch import Tensor

from erta_bench.core.ablation import (
    CALIBRATION_SEEDS,
    Overall,
    Setting,
    calibrated,
    checked,
    shared_settings,
)
from erta_bench.core.outcome import Outcome, record
from erta_bench.core.report import Bench, Row, Value
from erta_bench.core.variants import Variant, ladder
from erta_framework.calibration import Profile
from erta_framework.errors import CapabilityError, InputError
from erta_framework.plugins import Policy
from erta_framework.sampling import CFG, Callback, FlowEuler, Sampler, Samples, Solver, TextSampler
from erta_integrations.diffusers.bundled import PipelineSampler
from erta_integrations.shapes_wan.pipeline import WAN, grid

COLUMNS = {
    "scheduler": "scheduler",
    "budget": "calls",
    "name": "policies",
    "status": "status",
    "calls": "made",
    "psnr_mean": "PSNR",
    "psnr_std": "std",
    "own_psnr_mean": "own loop",
    "identical": "same bits",
}
OWN_LOOP = "flow_euler"
"""The scheduler whose steps the own loop can do too."""
NAMES = {"flow_euler": "plain Euler", "unipc": "plain UniPC"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSetting(Setting):
    """A setting whose samplers run `WanPipeline`.

    Attributes:
        scheduler: A name of `NAMES`.
    """

    scheduler: str = "flow_euler"

    def sampler(
        self,
        policies: Iterable[Policy] = (),
        steps: int | None = None,
        solver: Solver | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> TextSampler:
        """A pipeline with these policies.

        Raises:
            CapabilityError: The scheduler cannot serve a policy.
            InputError: A solver was given, or the guidance is not CFG.
        """
        if solver not in (None, FlowEuler()) or not isinstance(self.guidance, CFG):
            raise InputError(
                f"solver {solver!r} and guidance {self.guidance!r}: a pipeline has its scheduler "
                "and classifier-free guidance; give no solver, and guidance=CFG(...)"
            )
        return PipelineSampler(
            tuple(policies),
            callbacks,
            through=WAN,
            scheduler=self.scheduler,
            guidance_scale=self.guidance.scale,
            num_steps=steps or self.steps,
            batch_size=self.batch_size,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SameGridSetting(Setting):
    """The own loop on the grid of the pipeline's scheduler."""

    def sampler(
        self,
        policies: Iterable[Policy] = (),
        steps: int | None = None,
        solver: Solver | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> TextSampler:
        """The own loop with these policies."""
        return Sampler(
            tuple(policies),
            callbacks,
            solver=solver,
            guidance=self.guidance,
            sigmas=grid(OWN_LOOP, steps or self.steps),
            batch_size=self.batch_size,
        )


@dataclass(slots=True)
class Side:
    """One way to run all rows: the pipeline, or the own loop.

    Attributes:
        setting: Makes its samplers.
        seed: First seed of the measured prompts.
        bar: Shows what runs.
        full: The full run's samples and measures.
        profile: Its own calibration.
    """

    setting: Setting
    seed: int
    bar: Overall
    profile: Profile = field(init=False)
    reference: Samples = field(init=False)
    full: Outcome = field(default_factory=Outcome)

    def __post_init__(self) -> None:
        self.profile = calibrated(self.setting, self.bar, CALIBRATION_SEEDS + self.seed)
        self.reference, processor = self.sampled("full", self.setting.sampler(callbacks=[self.bar]))
        self.full.add(self.reference, self.reference, processor, self.branches)

    @property
    def branches(self) -> int:
        """Guidance branches of a step."""
        return len(self.setting.guidance.names)

    def sampled(self, title: str, sampler: TextSampler) -> tuple[Samples, float]:
        """Samples of the measured prompts, and processor seconds."""
        self.bar.title(title)
        start = time.process_time()
        result = sampler.sample(self.setting.model, self.setting.held_out, seed=self.seed)
        return result, time.process_time() - start

    def run(self, row: Variant) -> tuple[Outcome, Tensor]:
        """One row, measured against this side's own full run.

        Raises:
            CapabilityError: The sampler cannot serve a policy of the row.
        """
        policies = row.build(self.profile)
        sampler = self.setting.sampler(policies, row.steps, callbacks=[self.bar])
        result, processor = self.sampled(f"{row.budget} calls: {row.name}", sampler)
        outcome = Outcome()
        outcome.add(result, self.reference, processor, self.branches)
        return outcome, result.samples


def pipeline_ablation(
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
        InputError: What cannot be measured; see `erta_bench.core.ablation.checked`.
    """
    checked(setting, calls, seed_sets=1)
    rows: list[Row] = []
    profiles: list[Profile] = []
    shared = {name: getattr(setting, name) for name in Setting.__dataclass_fields__}
    for scheduler in dict.fromkeys(schedulers):
        table = rows_of(scheduler, tuple(dict.fromkeys(calls)), setting.steps)
        twice = 2 if scheduler == OWN_LOOP else 1
        with Overall(twice * work(setting, table), console) as bar:
            side = Side(PipelineSetting(scheduler=scheduler, **shared), seed, bar)
            own = Side(SameGridSetting(**shared), seed, bar) if twice == 2 else None
            rows += measured(scheduler, side, own, table)
        profiles.append(side.profile)
    facts = shared_settings(setting, seed, profiles[:1])
    return Bench(command, rows, COLUMNS, facts, section="budget")


def rows_of(scheduler: str, calls: Sequence[int], steps: int) -> list[Variant]:
    """The ladder of the ablation, without the solver that only the own loop has."""
    found = [row for budget in calls for row in ladder(budget, steps)]
    return [
        replace(row, name=NAMES[scheduler] if row.name == "plain Euler" else row.name)
        for row in found
        if row.solver == FlowEuler()
    ]


def work(setting: Setting, table: Sequence[Variant]) -> int:
    """Computed steps of one side, over its batches."""
    batches = -(-len(setting.held_out) // setting.batch_size)
    fit = -(-len(setting.calibration) // setting.batch_size)
    return (setting.steps + sum(row.budget for row in table)) * batches + setting.steps * fit


def measured(scheduler: str, side: Side, own: Side | None, table: Sequence[Variant]) -> list[Row]:
    """The full run and every row of one scheduler."""
    common: dict[str, Value] = {"scheduler": scheduler, "status": "measured", "detail": ""}
    facts: dict[str, Value] = {"group": "plain", "budget": None, "steps": side.setting.steps}
    pair = None if own is None else (own.full, own.reference.samples)
    found: list[Row] = [
        {
            **record("full", side.full, side.full, None, facts),
            **common,
            **beside(pair, side.reference.samples),
        }
    ]
    for row in table:
        facts = {"group": row.group, "budget": row.budget, "steps": row.steps}
        try:
            outcome, samples = side.run(row)
        except CapabilityError as error:
            refused: dict[str, Value] = {"status": "refused", "detail": reason(error)}
            found.append({"name": row.name, **facts, **common, **refused})
            continue
        pair = None if own is None else own.run(row)
        found.append(
            {
                **record(row.name, outcome, side.full, None, facts),
                **common,
                **beside(pair, samples),
            }
        )
    return found


def beside(pair: tuple[Outcome, Tensor] | None, samples: Tensor) -> dict[str, Value]:
    """The own loop's PSNR, and how far its samples are from the pipeline's."""
    if pair is None:
        return {"own_psnr_mean": None, "largest_difference": None, "identical": None}
    outcome, other = pair
    mean = outcome.psnr[0].mean()
    return {
        "own_psnr_mean": mean.item() if bool(mean.isfinite()) else None,
        "largest_difference": (samples - other).abs().max().item(),
        "identical": torch.equal(samples, other),
    }


def reason(error: CapabilityError) -> str:
    """What an error says, without the settings of the policy that it names."""
    said = str(error)
    start, end = said.find("("), said.find(") requires ")
    return said if end < 0 else f"{said[:start]} {said[end + 2 :]}"
