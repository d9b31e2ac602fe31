"""Which plan of full steps is best at equal work: long gaps first, last, or spread evenly."""

from __future__ import annotations

from collections.abc import Sequence

from erta_bench.core import Row
from erta_bench.studies._run import Study, StudyRun
from erta_framework import Policy
from erta_framework.modules import Select
from erta_policies.at import At
from erta_policies.ertacache import SkipPolicy
from erta_policies.shared import PlanFamily, StepPlan

FULL_STEPS = (21, 17, 13)
MODULES = Select(kind=("attention", "cross", "mlp"))


def reuse_modules(plan: StepPlan) -> Policy:
    """Attention and MLPs run at the full steps of a plan, and are reused between."""
    return At(sites=MODULES, when=SkipPolicy(steps=plan.full))


def study_plans(run: StudyRun) -> Sequence[Row]:
    """Each kind of plan at several numbers of full steps."""
    rows: list[Row] = []
    for full in FULL_STEPS:
        gradual = PlanFamily(run.steps, full).gradual
        plans = {
            "long gaps first": gradual,
            "even": StepPlan.evenly(run.steps, full),
            "long gaps last": gradual.reversed_segments(),
        }
        for name, plan in plans.items():
            rows.append(run.measure(name, [reuse_modules(plan)], full=full, plan=str(plan)))
    return rows


PLANS = Study(
    title="Plans of full steps at equal work",
    run=study_plans,
    models=("shapes-wan", "shapes-flux", "shapes-unet"),
    columns={
        "full": "full steps",
        "name": "",
        "work": "work",
        "psnr_mean": "PSNR",
        "psnr_std": "std",
        "plan": "plan",
    },
    section="full",
)
