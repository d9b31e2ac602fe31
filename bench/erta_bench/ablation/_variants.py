"""What the ablation compares: rows made of policies by name, in the order of the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from erta_bench.setting import PROFILE, Spec, build_policy
from erta_framework.calibration import Profile
from erta_framework.plugins import Policy, flatten
from erta_framework.sampling.solvers import FlowAdamsBashforth2, FlowEuler, Solver

Key = tuple[str, int, tuple[str, ...]]
"""Solver, steps and the settings of every part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One row: policies on a schedule.

    Attributes:
        name: Name in the table.
        group: What the row belongs to: `plain`, `ablation`, `recipe`, `phi`, `correction` or
            `signal`.
        budget: Network calls of each branch that were asked for.
        steps: Steps of the schedule.
        policies: Names and options of the policies, `PROFILE` where a profile goes.
        solver: How the trajectory is integrated.
    """

    name: str
    group: str
    budget: int
    steps: int
    policies: tuple[Spec, ...] = ()
    solver: Solver = field(default_factory=FlowEuler)

    def build(self, profile: Profile | None) -> tuple[Policy, ...]:
        """The policies on a profile.

        Raises:
            RegistryError: A policy is not installed.
        """
        return tuple(build_policy(spec, profile) for spec in self.policies)

    @property
    def key(self) -> Key:
        """Equal for rows that run the same thing."""
        parts = flatten(self.build(None))
        return repr(self.solver), self.steps, tuple(repr(part) for part in parts)


def make_offline_policy(calls: int, **chosen: str) -> tuple[Spec, ...]:
    """ERTACache's offline policy; the network here is a flow, so that its residual is reused."""
    options = {"profile": PROFILE, "calls": calls, **chosen}
    return ({"skip_policy": options},)


def make_adjustment(**options: str) -> tuple[Spec, ...]:
    """Timestep adjustment with these options."""
    return ({"timestep_adjuster": {"profile": PROFILE, **options}},)


def make_correction(**options: str) -> tuple[Spec, ...]:
    """Error rectification with these options."""
    return ({"error_linearizer": {"profile": PROFILE, **options}},)


def make_ladder(calls: int, steps: int) -> list[Variant]:
    """The ablation in the paper's order, beside the same number of plain steps.

    Args:
        calls: Network calls of each branch.
        steps: Steps of the full run.
    """
    recipe: Spec = {"ertacache": {"profile": PROFILE, "calls": calls}}
    return [
        Variant(name="plain Euler", group="plain", budget=calls, steps=calls),
        Variant(
            name="plain Adams-Bashforth 2",
            group="plain",
            budget=calls,
            steps=calls,
            solver=FlowAdamsBashforth2(),
        ),
        *(
            Variant(name=name, group=group, budget=calls, steps=steps, policies=policies)
            for name, group, policies in (
                ("uniform", "ablation", ({"skip_policy": {"evenly": calls}},)),
                ("+ offline policy", "ablation", make_offline_policy(calls)),
                (
                    "+ timestep adjustment",
                    "ablation",
                    make_offline_policy(calls) + make_adjustment(),
                ),
                (
                    "+ error rectification",
                    "ablation",
                    make_offline_policy(calls) + make_adjustment() + make_correction(),
                ),
                ("ertacache (recipe default)", "recipe", (recipe,)),
            )
        ),
    ]


def make_choices(calls: int, steps: int) -> list[Variant]:
    """Every choice that the paper leaves open, once, at one number of calls."""
    rows: list[tuple[str, str, tuple[Spec, ...]]] = []
    for form in ("velocity", "difference"):
        for time in ("nominal", "actual"):
            policies = make_offline_policy(calls) + make_adjustment(form=form, network_time=time)
            name = f"phi {form}, {time} time"
            rows.append((name, "phi", policies))
            rows.append((f"{name}, K/B", "phi", policies + make_correction()))
    for granularity in ("scalar", "channel"):
        policies = make_offline_policy(calls) + make_correction(granularity=granularity)
        rows.append((f"K/B {granularity}", "correction", policies))
    literal = make_offline_policy(calls) + make_correction(granularity="scalar", form="sigmoid")
    rows.append(("K/B scalar, literal sigmoid", "correction", literal))
    for signal in ("first", "mean", "max"):
        policies = make_offline_policy(calls, signal=signal) + make_correction()
        rows.append((f"signal {signal}, K/B", "signal", policies))
    return [
        Variant(name=name, group=group, budget=calls, steps=steps, policies=policies)
        for name, group, policies in rows
    ]


def make_variants(calls: Sequence[int], steps: int) -> list[Variant]:
    """All rows but the full run: a ladder for each number of calls, the choices at the middle one.

    Example:
        >>> len(make_variants([25, 17, 12], 50)) == 3 * 7 + 14
        True
    """
    middle = sorted(calls)[len(calls) // 2]
    rows: list[Variant] = []
    for budget in calls:
        rows += make_ladder(budget, steps)
        if budget == middle:
            rows += make_choices(budget, steps)
    return rows
