"""The rows of the comparison while they are measured, and the records that come of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from erta_bench.comparison._contender import SOLVED, Contender
from erta_bench.comparison._leaders import NEAR
from erta_bench.comparison._preparation import Preparation
from erta_bench.comparison._runner import BRANCHES, Prepared, RunResult
from erta_bench.core import (
    Measurement,
    Row,
    Value,
    as_finite,
    average,
    describe_error,
    make_record,
)
from erta_framework.errors import CapabilityError
from erta_framework.optional_dependencies import MissingExtraError
from erta_framework.plugins import flatten
from erta_integrations.diffusers.bundled import PipelineModel

LONGEST, HEAD = 400, 120
"""Characters of an error that are kept, and how many of them from its beginning."""
TIMES = (
    "seconds",
    "speedup",
    "efficiency",
    "processor_seconds",
    "processor_speedup",
    "processor_efficiency",
)
GAINS = ("gain_mean", "gain_std")


@dataclass(slots=True)
class ContenderRow:
    """A contender at one number of calls, and what it measured.

    Attributes:
        contender: The contender.
        budget: Work of each branch that was asked for, in network calls.
        prepared: The contender with everything filled in; None where it does not run.
        outcome: Times and qualities.
        right: Share of samples that show what their prompt says, word by word, by seed set.
        elements: Elements that the layers computed, over all runs.
        work: Work in network calls, as the engine counted it, by seed set.
        bytes_held: Bytes a sample held between steps.
        status, detail: Whether it was measured, and why not.
    """

    contender: Contender
    budget: int
    prepared: Prepared | None = None
    outcome: Measurement = field(default_factory=Measurement)
    right: list[Mapping[str, float]] = field(default_factory=list)
    elements: int = 0
    work: list[float] = field(default_factory=list)
    bytes_held: int | None = None
    status: str = "measured"
    detail: str = ""

    def add(
        self, result: RunResult, reference: RunResult, exact: Tensor, through: PipelineModel
    ) -> None:
        """Measure one run against the full one.

        Args:
            result: The run; it may hold only the first samples.
            reference: The full run.
            exact: The exact solution `[B, C, ...]` of the same samples.
            through: Reads from the pixels what a sample shows.
        """
        count = len(result.samples.samples)
        first = replace(reference.samples, samples=reference.samples.samples[:count])
        self.outcome.add(
            result.samples, first, exact[:count], result.processor, BRANCHES, result.calls
        )
        self.elements += result.elements
        self.work.append(result.work)
        self.right.append(through.shown(result.samples.samples, result.samples.prompts))

    @property
    def samples(self) -> int:
        """Samples that were measured, over all seed sets."""
        return sum(map(len, self.outcome.fine))

    def average_right(self) -> dict[str, Value]:
        """Share of samples that show what their prompt says: all words, and each."""
        if not self.right[0]:  # prompts that say nothing
            return {"right": None}
        found = {word: average([each[word] for each in self.right]) for word in self.right[0]}
        return {"right": found.pop("all"), **{f"right_{k}": v for k, v in found.items()}}

    def fail(self, error: Exception) -> None:
        """Stop running it, and note why."""
        self.prepared = None
        kinds: dict[type[Exception], str] = {
            MissingExtraError: "not installed",
            CapabilityError: "refused",
        }
        if self.contender.rival:
            kinds[ValueError] = "refused"  # as cache-dit says which pipelines it does not know
        self.status = next((s for kind, s in kinds.items() if isinstance(error, kind)), "error")
        self.detail = describe_error(error, LONGEST, HEAD)


def make_full_record(full: ContenderRow, steps: int) -> Row:
    """The full run, which all others are compared with."""
    facts: dict[str, Value] = {
        "group": "plain",
        "kind": "full",
        "budget": None,
        "steps": steps,
        "status": "measured",
        **full.average_right(),
        "work": 1.0,
        "efficiency": 1.0,
        "processor_efficiency": 1.0,
        "bytes_held": 0,
        "calibration_calls": 0,
    }
    return drop_gain(make_record("full", full.outcome, full.outcome, None, facts))


def make_contender_record(row: ContenderRow, full: ContenderRow, preparation: Preparation) -> Row:
    """The record of a contender at one number of calls; without numbers where it did not run."""
    contender, steps = row.contender, preparation.runner.steps
    facts: dict[str, Value] = {
        "group": contender.group,
        "kind": contender.kind,
        "budget": row.budget,
        "steps": contender.steps(row.budget, steps),
        "status": row.status,
        "detail": row.detail,
        "equal": "work",
        "seam": "" if contender.group in ("plain", "other") else contender.seam,
        "setting": "",
    }
    if row.prepared is None or not row.outcome.psnr:
        return {"name": contender.name, **facts}
    found = make_record(contender.name, row.outcome, full.outcome, None, facts)
    layers = row.elements / full.elements * full.samples / row.samples
    counted = average(row.work) / average(full.work)
    work = counted if row.prepared.works_inside else layers
    off = abs(steps * work - row.budget) > NEAR
    value = row.prepared.value
    least = row.prepared.budget != row.budget
    means = torch.stack([quality.mean() for quality in row.outcome.psnr])
    made_record: dict[str, Value] = {
        **found,
        "status": "off budget" if off else "measured",
        "detail": explain_off_budget(contender, steps * work, steps, least) if off else "",
        "setting": "" if value is None else f"{find_solved_name(contender)}={value:.4g}",
        "efficiency": compute_efficiency(found["speedup"], work),
        "processor_efficiency": compute_efficiency(found["processor_speedup"], work),
        "work": work,
        "work_layers": layers,
        "work_flops": None if contender.rival else found["work"],
        "psnr_sets_std": as_finite(means.std(correction=0)),
        **row.average_right(),
        "bytes_held": row.bytes_held,
        "calibration_calls": preparation.count_calibration_calls(row.prepared),
        "solving_calls": preparation.search_calls.get(contender.name, 0.0),
        "policies": "; ".join(repr(part) for part in flatten(row.prepared.policies)),
    }
    if contender.oracle:  # runs on fewer samples, so its time compares with nothing
        made_record |= dict.fromkeys((*TIMES, "calibration_calls"), None)
    return drop_gain(made_record)


def compute_efficiency(speedup: Value, work: float) -> float:
    """Efficiency: the measured speed-up over what the work that was saved allows."""
    return float(speedup or 0.0) * work


def explain_off_budget(contender: Contender, made: float, steps: int, least: bool = False) -> str:
    """Why a row does another amount of work, in network calls.

    Args:
        contender: The contender.
        made: The work.
        steps: That of the full run.
        least: Whether the policy says that it can do no less.
    """
    why = f": {contender.bound}" if contender.bound else ""
    if least:
        return f"it does the work of {made:.1f} calls, the least that it can do{why}"
    if abs(made - steps) < 0.5:
        return "it skipped nothing, whatever the setting"
    if contender.search is not None and contender.search.whole:
        return f"no whole number is nearer; it does the work of {made:.1f} calls{why}"
    said = f"it does the work of {made:.1f} calls on the measured prompts; nothing nearer was found"
    return said + why


def find_solved_name(contender: Contender) -> str:
    """Name of the setting that was solved for, at whatever depth it stands."""
    held: list[object] = [*contender.policies, contender.options]
    while held:
        value = held.pop(0)
        if isinstance(value, Mapping):
            for name, setting in value.items():
                if setting is SOLVED:
                    return str(name)
            held += value.values()
    return ""


def drop_gain(row: Row) -> Row:
    """The record without the gain, which only the ablation has."""
    return {key: value for key, value in row.items() if key not in GAINS}
