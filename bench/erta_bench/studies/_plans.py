"""Which plan of full steps is best at equal work: long gaps first, last, or spread evenly."""

from __future__ import annotations

from collections.abc import Sequence

from erta_bench.core import TWO_AXES, Row
from erta_bench.studies._run import Study, StudyRun
from erta_policies.procache import ProCache, ProCacheProfiler, plan_toca
from erta_policies.shared import FULL, SELECT, PlanFamily, StepPlan

SCORED = 4
"""Plans of the family that are scored on calibration samples."""


def study_plans(run: StudyRun) -> Sequence[Row]:
    """Plans with full steps at a third, without and with refreshed tokens; the best of a family."""
    full = round(run.steps / 3)
    gradual = PlanFamily(run.steps, full).gradual
    plans = {
        "long gaps first": gradual,
        "even": StepPlan.evenly(run.steps, full),
        "long gaps last": gradual.reversed_segments(),
    }
    rows: list[Row] = []
    for name, plan in plans.items():
        rows += [measure_plan(run, name, plan), measure_plan(run, name, plan.with_select())]
    rows.append(measure_plan(run, "long gaps first, all blocks", gradual.with_select(), depth=0.0))
    toca = plan_toca(run.steps, 3)
    rows.append(measure_plan(run, "ToCa's plan, all blocks", toca, depth=0.0))
    alternate = toca.without_select().with_select()
    rows.append(measure_plan(run, "DuCa's plan, all blocks", alternate, depth=0.0))
    profile = run.calibrate(ProCacheProfiler(full=(full,), most=SCORED))
    (chosen, *_) = ProCache(profile=profile, select=False).list_plans(run.steps)
    rows.append(measure_plan(run, f"best of {SCORED} on calibration samples", chosen))
    return rows


def measure_plan(run: StudyRun, name: str, plan: StepPlan, depth: float = 0.75) -> Row:
    """One row."""
    policy = ProCache(plan=plan.states, depth=depth)
    full, refreshed = plan.count(FULL), plan.count(SELECT)
    return run.measure(name, [policy], full=full, refreshed=refreshed, plan=str(plan))


PLANS = Study(
    title="Plans of full steps at equal work",
    run=study_plans,
    models=("shapes-wan", "shapes-flux", "shapes-unet"),
    columns={
        "full": "full",
        "refreshed": "refreshed",
        "name": "",
        "work": "work",
        **TWO_AXES,
    },
    section="full",
)
