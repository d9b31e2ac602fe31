"""Modules that are corrected, verified or chosen, beside an even schedule of as much work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from erta_bench.core import TWO_AXES, Row
from erta_bench.studies._run import Study, StudyRun
from erta_framework import Policy
from erta_framework.modules import Select
from erta_policies.adacorrection import AdaCorrection
from erta_policies.at import At
from erta_policies.forecast import Forecaster
from erta_policies.l2c import L2C, L2CProfiler
from erta_policies.speca import SpeCa
from erta_policies.taylorseer import RefreshInterval

MODULES: Final = Select(kind=("attention", "cross", "mlp"))
LINE: Final = Forecaster(basis="taylor", order=1, over="index", what="output")
INTERVAL: Final = 5
GAMMAS: Final = (0.3, 1.0)
LIMITS: Final = (0.3, 0.05)
PARTS: Final = (0.5, 0.9)
"""Parts of the modules of every second step that rest."""


def schedule(when: RefreshInterval, what: Forecaster | None) -> Policy:
    """Attention and MLPs run at the steps of a schedule, and are reused or forecast between."""
    return At(sites=MODULES, when=when, what=what)


def study_corrections(run: StudyRun) -> Sequence[Row]:
    """Each method, and an even schedule of the work that it did, with the same forecast."""
    rows: list[Row] = []

    def measure(group: str, name: str, policy: Policy) -> float:
        row = run.measure(name, [policy], group=group)
        rows.append(row)
        return float(str(row["work"])) * run.steps

    def compare(group: str, name: str, policy: Policy, what: Forecaster | None = None) -> None:
        work = measure(group, name, policy)
        even = RefreshInterval(budget={"work": work}, first=1)
        measure(group, "even, as much work", schedule(even, what))

    for what, group in ((None, "AdaCorrection, reuse"), (LINE, "AdaCorrection, forecast")):
        host = schedule(RefreshInterval(interval=INTERVAL, first=1), what)
        measure(group, f"every {INTERVAL}th step", host)
        for gamma in GAMMAS:
            compare(group, f"gamma {gamma}", AdaCorrection(policy=host, gamma=gamma), what)
    for limit in LIMITS:
        policy = SpeCa(threshold=limit, decay=1.0, floor=0.0, first=2, order=1)
        compare("SpeCa", f"threshold {limit}", policy, LINE)
    profile = run.calibrate(L2CProfiler())
    sums = profile.statistics
    most = float((sums["shares"] / sums["calls"]).sum()) * (run.steps // 2)
    for part in PARTS:
        rested = L2C(profile=profile, budget={"work": run.steps - part * most})
        compare("L2C, greedy", f"{part:.0%} at rest", rested)
    return rows


CORRECTIONS = Study(
    title="Corrected, verified and chosen modules at equal work",
    run=study_corrections,
    models=("shapes-wan", "shapes-flux", "shapes-unet"),
    columns={
        "group": "",
        "name": "",
        "work": "work",
        **TWO_AXES,
    },
    section="group",
)
