"""What best stands in for a block that is left out: its residual, a line, or a ridge fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from erta_bench.core import TWO_AXES, Row
from erta_bench.studies._run import Study, StudyRun
from erta_framework import Policy
from erta_framework.modules import Visit
from erta_policies.ertacache import SkipPolicy
from erta_policies.fastcache import BlockGroup, DriftGate, SurrogateProfiler

THRESHOLDS = (0.05, 0.1, 0.2)
RANK = 8
BUCKETS = 5
"""Parts of the steps in the fits by time."""


@dataclass(slots=True)
class Decisions:
    """What a gate decided for every block, branch and step of a run.

    Attributes:
        taken: Of each sample, whether the block was replaced.
        replay: Whether they are repeated; else they are noted.
        fit_work: The work of the surrogates' products, in network calls on the whole batch.
    """

    taken: dict[tuple[str, str, int], Sequence[bool]] = field(default_factory=dict)
    replay: bool = False
    fit_work: float = 0.0


class SameDecisions(DriftGate):
    """A `DriftGate` that repeats the decisions of another one.

    Attributes:
        decisions: Theirs.
    """

    decisions: Decisions = field(default_factory=Decisions, repr=False)

    def decide_reuse(self, group: BlockGroup, visit: Visit) -> Sequence[bool]:
        key = (visit.place.path, visit.call.branch, visit.step.index)
        if not self.decisions.replay:
            self.decisions.taken[key] = super().decide_reuse(group, visit)
        reuse = self.decisions.taken[key]
        self._count(visit, sum(reuse))
        return reuse

    def _count(self, visit: Visit, replaced: int) -> None:
        """Add the products that the surrogates take for so many samples."""
        costs = visit.call.costs
        if not replaced or costs is None:
            return
        steps = visit.step.num_steps
        for k, now in enumerate(visit.continued.values()):
            found = self.table.find(visit.place.path, k, visit.step.index, steps)
            each = now[0].numel() // now.shape[-1] * found.flops
            self.decisions.fit_work += replaced * each / costs.total


def make_gates(run: StudyRun) -> Mapping[str, Callable[..., SameDecisions]]:
    """What makes a gate with each surrogate, residual reuse first."""
    profile = run.calibrate(SurrogateProfiler())
    by_time = run.calibrate(SurrogateProfiler(buckets=BUCKETS))
    near = run.calibrate(SurrogateProfiler(longest=1))
    affine = partial(SameDecisions, surrogate="affine")
    ridge = partial(SameDecisions, surrogate="ridge")
    return {
        "residual": SameDecisions,
        "affine": partial(affine, profile=profile),
        f"affine, {BUCKETS} times": partial(affine, profile=by_time),
        "ridge": partial(ridge, profile=profile),
        f"ridge, {BUCKETS} times": partial(ridge, profile=by_time),
        f"ridge, rank {RANK}": partial(ridge, profile=profile, rank=RANK),
        "ridge, neighbouring steps": partial(ridge, profile=near),
    }


def study_surrogates(run: StudyRun) -> Sequence[Row]:
    """Every surrogate under the decisions of residual reuse, at several thresholds."""
    rows: list[Row] = []
    gates = make_gates(run)
    for threshold in THRESHOLDS:
        decisions = Decisions()
        for name, make in gates.items():
            decisions.fit_work = 0.0
            gate = make(threshold=threshold, decisions=decisions)
            rows.append(measure(run, name, gate, decisions, threshold))
            decisions.replay = True
        calls = max(2, round(float(rows[-1]["work"] or 0.0) * run.steps))
        evenly = SkipPolicy(evenly=calls)
        rows.append(run.measure("whole steps", [evenly], threshold=threshold, fit_work=0.0))
    return rows


def measure(run: StudyRun, name: str, gate: Policy, decisions: Decisions, threshold: float) -> Row:
    """One row, with the work of the surrogates' products beside that of the network."""
    row = run.measure(name, [gate], threshold=threshold)
    return {**row, "fit_work": decisions.fit_work / (run.setting.branches * run.steps)}


SURROGATES = Study(
    title="What stands in for a block, at the same decisions",
    run=study_surrogates,
    models=("shapes-wan", "shapes-flux"),
    columns={
        "threshold": "threshold",
        "name": "",
        "work": "work",
        "fit_work": "work of the fit",
        **TWO_AXES,
    },
    section="threshold",
)
