"""Which test of a block's input leaves out the right blocks: FastCache's, at what work."""

from __future__ import annotations

from collections.abc import Sequence

from erta_bench.core import TWO_AXES, Row
from erta_bench.studies._run import Study, StudyRun
from erta_framework import Policy
from erta_policies.fastcache import DriftGate, SurrogateProfiler


def study_gates(run: StudyRun) -> Sequence[Row]:
    """Each test of `DriftGate` at several bounds, under residual reuse."""
    profile = run.calibrate(SurrogateProfiler())
    gates: list[tuple[str, str, Policy]] = []
    for bound in (0.03, 0.05, 0.07, 0.1, 0.2):
        gates.append(("threshold", f"{bound:g}", DriftGate(threshold=bound)))
    for bound in (0.05, 0.1, 0.2):
        gate = DriftGate(threshold=bound, accumulate=True)
        gates.append(("accumulated", f"{bound:g}", gate))
    for bound in (0.05, 0.1):
        gate = DriftGate(threshold=bound, per_sample=False)
        gates.append(("worst sample", f"{bound:g}", gate))
    for quantile in (0.1, 0.3, 0.6, 0.9):
        gate = DriftGate(test="calibrated", quantile=quantile, profile=profile)
        gates.append(("calibrated", f"quantile {quantile:g}", gate))
    for spread in ("drift", "variance"):
        gate = DriftGate(test="adaptive", spread=spread)
        gates.append(("adaptive", f"S is the {spread}", gate))
    return [run.measure(name, [gate], bound=bound) for name, bound, gate in gates]


GATES = Study(
    title="Tests of a block's input",
    run=study_gates,
    models=("shapes-wan", "shapes-flux"),
    columns={
        "name": "",
        "bound": "bound",
        "work": "work",
        **TWO_AXES,
    },
    section="name",
)
