"""Check of planners: the schedule that is planned is the schedule that runs."""

from __future__ import annotations

from erta_framework.budgets import StepSchedule, as_planner, forecast
from erta_framework.plugins import Policy
from erta_framework.testing._compare import fail
from erta_framework.testing._setup import choose_setup, make_engine


def check_plan_is_what_runs(policy: Policy) -> None:
    """A planner has every member of `Planner`, and computes the steps that it plans.

    Recipes are left out: another of their parts may compute more.
    """
    if as_planner(policy) is None or tuple(policy.parts()) != (policy,):
        return
    setup = choose_setup(policy)
    schedule = forecast([policy], setup.num_steps)
    trace = setup.run(make_engine(policy), setup.request(seed=44)).trace
    for branch in dict.fromkeys(call.branch for call in trace.calls()):
        planned: StepSchedule = schedule.branches.get(branch, schedule)
        ran = tuple(c.index for c in trace.calls() if c.branch == branch and c.computed)
        if ran != planned.computed:
            fail(
                policy,
                f"it planned the steps {planned.computed}, but branch {branch!r} computed {ran}",
                "let plan() and decide() read the same steps",
            )
