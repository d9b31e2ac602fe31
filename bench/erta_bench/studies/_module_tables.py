"""Tables of attention and MLPs at equal work: calibrated by either criterion, or spread evenly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from erta_bench.core import TWO_AXES, Row
from erta_bench.studies._run import Study, StudyRun
from erta_framework import Policy, Profile
from erta_policies.febcache import FEBCacheProfiler, ModuleTable, State, StateTable, read_table
from erta_policies.noise_scale import NoiseScale
from erta_policies.shared import StepPlan

WORKS: Final[Mapping[str, float]] = {"shapes-unet": 0.85, "shapes-wan": 0.6, "shapes-flux": 0.6}
"""The work that is asked for, as a part of the full run; the other modules of the UNet are more."""
STATES: Final[tuple[State, ...]] = ("N", "B", "A", "M")


def study_tables(run: StudyRun) -> Sequence[Row]:
    """A table of each criterion, with and without scaled noise, and an even one of as much work."""
    rows: list[Row] = []

    def measure(name: str, table: StateTable, *others: Policy) -> None:
        policies = [ModuleTable(table=table.states), *others]
        rows.append(run.measure(name, policies, asked=work, table=spell(table)))

    work = WORKS[run.name]
    for metric in ("norm", "l2"):
        profile = run.calibrate(
            FEBCacheProfiler(budget={"speedup": 1 / work}, metric=metric, rounds=5)
        )
        measure(metric, read_table(profile))
        measure(f"{metric}, b(t)", read_table(profile), NoiseScale())
    full = find_full_steps(profile, work)
    even = StepPlan.evenly(run.steps, full)
    measure("evenly", StateTable.of_plans(even, even))
    return rows


def find_full_steps(profile: Profile, work: float) -> int:
    """How many steps run in a table that reuses both or nothing, at this work."""
    both = float(profile.statistics["shares"][2] / profile.statistics["calls"][0])
    steps = profile.num_steps
    return max(1, round(steps * (1.0 - (1.0 - work) / both)))


def spell(table: StateTable) -> str:
    """How many steps are in each state."""
    return " ".join(f"{table.count(state)}{state}" for state in STATES)


MODULE_TABLES = Study(
    title="Tables of attention and MLPs at equal work",
    run=study_tables,
    models=tuple(WORKS),
    columns={
        "asked": "asked work",
        "name": "",
        "work": "work",
        **TWO_AXES,
        "table": "steps",
    },
    section="asked",
)
