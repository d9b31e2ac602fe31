"""`MethodSettings`: the settings of one method beside each other, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from erta_bench.core import TWO_AXES, Row
from erta_bench.setting import PROFILE, Spec
from erta_bench.studies._run import Study, StudyRun
from erta_framework import Policy, Profile
from erta_framework.config import build_policies, build_policy

Rows = Mapping[str, Sequence[Spec]]
"""Policies, as a configuration file has them, by the name of a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSettings:
    """Settings of a method, and what they stand beside.

    They are for 50 steps: counts of steps and work are those of that many.

    Attributes:
        title: Whose settings.
        rows: What every model runs.
        own: By model, rows that it runs besides, or otherwise.
        baselines: What every model runs at the end, to compare with.
        profilers: By row, what is calibrated for it, where its options have `PROFILE`.
        models: The models.
    """

    title: str
    rows: Rows
    baselines: Rows
    models: tuple[str, ...] = ("shapes-wan", "shapes-flux")
    own: Mapping[str, Rows] = field(default_factory=dict)
    profilers: Mapping[str, Spec] = field(default_factory=dict)

    def list_rows(self, model: str) -> Rows:
        """The rows of a model, in order; a row of its own stands in the place of its name."""
        return {**self.rows, **self.own.get(model, {}), **self.baselines}

    def measure(self, run: StudyRun) -> Sequence[Row]:
        """Every row on a model; profiles that several rows need are calibrated once."""
        profiles: dict[str, Profile] = {}
        rows: list[Row] = []
        for name, specs in self.list_rows(run.name).items():
            profiler = self.profilers.get(name)
            if profiler is not None and str(profiler) not in profiles:
                profiles[str(profiler)] = run.calibrate(build_policy(profiler, name))
            profile = None if profiler is None else profiles[str(profiler)]
            rows.append(run.measure(name, build_row(specs, profile)))
        return rows

    def as_study(self) -> Study:
        """The study that measures them."""
        return Study(
            title=self.title,
            run=self.measure,
            models=self.models,
            columns={"name": "", "work": "work", **TWO_AXES},
        )


def build_row(specs: Sequence[Spec], profile: Profile | None = None) -> tuple[Policy, ...]:
    """The policies of a row.

    Args:
        specs: As a configuration file has them.
        profile: Stands where an option is `PROFILE`; None leaves the option as it is.

    Raises:
        ConfigError: An option is unknown.
        RegistryError: A policy is not installed.
        PolicyError: A setting is out of range.
    """
    return build_policies([fill_profile(spec, profile) for spec in specs])


def fill_profile(spec: Spec, profile: Profile | None) -> str | dict[str, dict[str, Any]]:
    """A policy's name and options, with the profile where an option is `PROFILE`."""
    if isinstance(spec, str):
        return spec
    return {
        name: {
            key: profile if value == PROFILE and profile is not None else value
            for key, value in options.items()
        }
        for name, options in spec.items()
    }


def spread_evenly(*counts: int) -> Rows:
    """Whole steps that are spread evenly, with what the core reuses in between."""
    return {f"even steps, {n} of 50": ({"skip_policy": {"evenly": n}},) for n in counts}


def continue_evenly(*counts: int) -> Rows:
    """Whole steps that are spread evenly, with a line over sigma in between."""
    line: Spec = {"forecaster": {"order": 1}}
    return {f"line on {n} even steps": ({"skip_policy": {"evenly": n}}, line) for n in counts}
