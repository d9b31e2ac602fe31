"""Prepares contenders: calibrates profiles, and finds the setting for an amount of work."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from erta_bench.comparison._calibration import FITTED_PROFILERS, Calibrator
from erta_bench.comparison._contender import (
    BUDGET,
    PARTS,
    RATIOS,
    SOLVED,
    STEPS,
    CalibratedBy,
    Contender,
    ListedSteps,
    Spec,
    fill,
)
from erta_bench.comparison._learning import SolverTraining
from erta_bench.comparison._listed import choose_steps
from erta_bench.comparison._runner import Prepared, Runner
from erta_bench.comparison._search import SettingSearch, count_planned_calls
from erta_bench.setting import CALIBRATION_SEEDS
from erta_framework import Profile
from erta_framework.budgets import forecast
from erta_framework.config import build_policies

ProfileKey = tuple[CalibratedBy, str, float | None]
"""How a profile is calibrated, at which seam, and for which number of calls if that matters."""


@dataclass(slots=True)
class Preparation:
    """Fills contenders in, and keeps what that took.

    Attributes:
        runner: Runs them.
        calibration: Prompts to calibrate and to search on.
        search_prompts: How many of them a search runs.
        profiles: The profiles that were calibrated.
        calibration_calls: Network calls of each branch, over all samples, that each of them took.
        searches: What was tried for each contender with a setting to find.
        search_calls: Network calls of each branch, over all samples, that the searches took.
        calibrator: Calibrates.
    """

    runner: Runner
    calibration: Sequence[str]
    search_prompts: int = 2
    profiles: dict[ProfileKey, Profile] = field(default_factory=dict)
    calibration_calls: dict[ProfileKey, int] = field(default_factory=dict)
    searches: dict[str, SettingSearch] = field(default_factory=dict)
    search_calls: dict[str, float] = field(default_factory=dict)
    calibrator: Calibrator = field(init=False)
    _ratios: list[float] | None = None
    _training: SolverTraining | None = None
    _full_elements: int = 0

    def __post_init__(self) -> None:
        self.calibrator = Calibrator(self.runner)

    def prepare(self, contender: Contender, budget: float) -> Prepared:
        """Calibrate what is not calibrated yet, and find the setting for the work.

        Raises:
            BudgetError: The contender cannot do so little work, which a run may say only later.
            ErtaError: The pipeline cannot serve the contender.
        """
        if contender.learned:
            solver = self.training.train(contender.learned, int(budget))
            return Prepared(contender, budget, solver=solver)
        if contender.search is None:
            return self._fill_in(contender, budget, None)
        if contender.name not in self.searches:
            self.search_calls[contender.name] = 0.0
            most = self.runner.steps if contender.search is STEPS else contender.search.high
            self.searches[contender.name] = SettingSearch(
                replace(contender.search, high=most),
                lambda value: self._measure_work(contender, value),
            )
        return self._fill_in(contender, budget, self.searches[contender.name].find(budget))

    def prepare_oracle(
        self, contender: Contender, budget: float, prompts: Sequence[str], seed: int
    ) -> Prepared:
        """Fit the weights of a contender to the very samples that are measured."""

        def profile_of(made: CalibratedBy, options: dict[str, Any]) -> Profile:
            if made.profiler not in FITTED_PROFILERS:
                return self._profile(made, contender.seam, budget, options)
            return self.calibrator.calibrate(made, contender.seam, options, prompts, seed)[0]

        return self._fill_in(contender, budget, None, profile_of)

    def count_calibration_calls(self, prepared: Prepared) -> int:
        """Network calls of each branch, over all samples, that calibrating took.

        Counted while they ran, with those of trials, of copies of a sample and of further rounds;
        one that leaves out parts of the network is one call.
        """
        if prepared.contender.learned:
            return self.training.count_calls(prepared.contender.learned, int(prepared.budget))
        count = self.runner.steps if RATIOS in prepared.contender.options.values() else 0
        known = [key for key in self.profiles if self._uses(prepared, key)]
        return count + sum(self.calibration_calls[key] for key in known)

    @property
    def training(self) -> SolverTraining:
        """Trains the solvers of rows that are learned, on the same samples."""
        if self._training is None:
            self._training = SolverTraining(self.runner, self.calibration)
        return self._training

    def _uses(self, prepared: Prepared, key: ProfileKey) -> bool:
        made, seam, budget = key
        found: list[Any] = []
        fill(prepared.contender.policies, found.append)
        for other in [one for one in found if isinstance(one, CalibratedBy)]:
            fill(other.options, found.append)
        where = made.seam or prepared.contender.seam
        return made in found and seam == where and budget in (None, prepared.budget)

    # ------------------------------------------------------------------ filling in
    def _fill_in(
        self,
        contender: Contender,
        budget: float,
        value: float | None,
        profile: Callable[[CalibratedBy, dict[str, Any]], Profile] | None = None,
    ) -> Prepared:
        """Replace every placeholder, at every depth of the settings."""
        profile_of = profile or (
            lambda made, options: self._profile(made, contender.seam, budget, options)
        )

        def replace_placeholder(what: Any) -> Any:
            if isinstance(what, CalibratedBy):
                return profile_of(what, fill(dict(what.options), replace_placeholder))
            if what is RATIOS:
                return self._magnitude_ratios()
            if isinstance(what, ListedSteps):
                return choose_steps(what, round(budget), self.runner.steps)
            return {BUDGET: budget, SOLVED: value, PARTS: list(self.runner.through.parts)}[what]

        policies = build_policies(list(fill(contender.policies, replace_placeholder)))
        options = fill(dict(contender.options), replace_placeholder)
        sigmas: tuple[float, ...] = ()
        if contender.on is not None:
            sigmas = self._list_sigmas(fill(contender.on, replace_placeholder))
        return Prepared(contender, budget, value, tuple(policies), options, sigmas)

    def _list_sigmas(self, on: Spec) -> tuple[float, ...]:
        """Sigmas of the full run's grid at which a schedule computes.

        Raises:
            CapabilityError: The scheduler has no such grid.
        """
        grid = self.runner.list_sigmas()
        (schedule,) = build_policies([on])
        return tuple(grid[step] for step in forecast([schedule], self.runner.steps).computed)

    def _profile(
        self, made: CalibratedBy, seam: str, budget: float, options: dict[str, Any]
    ) -> Profile:
        """A profile, calibrated when it is first asked for."""
        where = made.seam or seam
        key = made, where, budget if made.budgeted else None
        if key not in self.profiles:
            prompts = self.calibration[: made.samples or None]
            self.profiles[key], self.calibration_calls[key] = self.calibrator.calibrate(
                made, where, options, prompts, CALIBRATION_SEEDS
            )
        return self.profiles[key]

    def _magnitude_ratios(self) -> list[float]:
        """The ratios that diffusers' own calibration prints, of the first branch; one prompt."""
        if self._ratios is None:
            options: dict[str, Any] = {"calibrate": True, "num_inference_steps": self.runner.steps}
            sampler = self.runner.make_sampler(
                watched_by=self.runner.make_bridge("MagCache", options)
            )
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                sampler.sample(self.runner.model, self.calibration[:1], seed=CALIBRATION_SEEDS)
            lines = [line for line in printed.getvalue().splitlines() if line.startswith("[1.0")]
            self._ratios = [float(ratio) for ratio in json.loads(lines[0])]
        return self._ratios

    # ------------------------------------------------------------------ searching
    def _measure_work(self, contender: Contender, value: float) -> float:
        """Work at a value in network calls, planned where that can be, else from a short run.

        Whole steps of whole networks cost as much as they have calls. At the trunk seam a reused
        step runs what is around the blocks.
        """
        steps = self.runner.steps
        prepared = self._fill_in(contender, 0, value)
        if prepared.policies and contender.seam == "latent":
            planned = count_planned_calls(prepared.policies, steps)
            if planned is not None:
                return planned
        prompts = self.calibration[: self.search_prompts]
        result = self.runner.run(prepared, prompts, CALIBRATION_SEEDS)
        self.search_calls[contender.name] += result.calls * len(prompts)
        if prepared.works_inside:
            return result.work
        if not self._full_elements:
            plain = Prepared(Contender(name="full", group="plain"), steps)
            self._full_elements = self.runner.run(plain, prompts, CALIBRATION_SEEDS).elements
        return steps * result.elements / self._full_elements
