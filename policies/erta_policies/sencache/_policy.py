"""`SenCache`: a skip rule by a first-order bound on how far the output has moved."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from erta_framework import (
    Call,
    Compute,
    Decision,
    Needs,
    Policy,
    Profile,
    Profiler,
    SessionInfo,
    Step,
    Traits,
    hookimpl,
)
from erta_framework.errors import MissingProfileError, PolicyError, ProfileMismatchError
from erta_framework.plugins import choose_unit
from erta_policies.constants import read_published
from erta_policies.sencache._profiler import SensitivityProfiler
from erta_policies.sencache._reference import ComputedReference, read_latents
from erta_policies.sencache._sensitivity import (
    KIND,
    STATES,
    UNIT,
    Sensitivities,
    latent_norms,
    scale_tolerance,
    score_change,
    time_unit,
)
from erta_policies.shared import FirstBranch, load_profile, reuse_below

GENERIC: Mapping[str, Any] = {
    "eps_start": 0.01,
    "eps_main": 0.1,
    "max_skips": 3,
    "first": 0,
    "last": 0,
}
"""Settings where neither the user nor the model gives one."""
OWN = (
    *("solver", "num_steps", "sigma_grid", "guidance", "branches", "latent_shape", "model.seam"),
    *("reused", UNIT, STATES),
)
"""Facts that a table over the timestep does not depend on, or that are checked here."""


class SenCache(Policy):
    """Reuses while the output can have changed by less than `eps` an element since it was computed.

    Jx and Jt are the sensitivities of the network to its latents and to its timestep. In first
    order, the output has changed by no more than S = Jx ||x - x_c|| + Jt |t - t_c| since the last
    computed step, with latents x_c and timestep t_c. A step is reused while S is below `eps` times
    the square root of the number of elements of one latent; `max_skips` bounds a run of reused
    steps. The movement is measured from the last computed step, not summed. Jx and Jt are those of
    the tabulated timestep nearest to t_c. They come from a profile, which serves other numbers of
    steps, other grids and other sizes of the same network.

    The branch that is called first decides for the step. A reused output is core's own: of a flow
    `x + residual`. At the trunk seam that is the residual of the block stack, as published; the
    score is of the latents at either seam.

    Source: SenCache, arXiv 2602.24208, and the repository vita-epfl/SenCache, whose scripts have
    these rules and the tolerances of each model. Without a model, the tolerances are those that
    notes on the paper report: 0.01 in the first fifth, then the careful end of 0.1 to 0.6, and
    K = 3 as in its ablation. Computing the square root from the latents, a decision for each sample
    of a batch, and `each_branch` are ours.

    Attributes:
        profile: File or profile of a `SensitivityProfiler`, or of `measure_noised`.
        model: Name of published tolerances, see `erta_policies.constants.models("sencache")`.
        eps_start: Tolerated root mean square change in the first steps.
        eps_main: The same in the others.
        start: Part of the steps in which `eps_start` holds, rounded to whole steps.
        max_skips: K, the longest run of reused steps.
        first: Steps at the start that are computed; a part of them if below 1, rounded.
        last: Steps at the end that are computed, likewise.
        each_branch: Whether every branch decides for itself.
        per_sample: Decide for each sample of a batch; else the first one decides for all, as in the
            published code. At the trunk seam one sample that must be computed computes all.
        allow: Fingerprint fields of the profile that may differ from the run.

    Raises:
        PolicyError: There is no profile, nothing was published for the model, or a setting is out
            of range.

    Example:
        >>> policy = SenCache(profile="wan.safetensors", model="wan2.1-t2v-1.3b")
        >>> policy.setting("eps_main"), policy.setting("max_skips")
        (2.0, 3)
    """

    profile: str | Path | Profile | None = None
    model: str | None = None
    eps_start: float | None = None
    eps_main: float | None = None
    start: float = 0.2
    max_skips: int | None = None
    first: float | None = None
    last: float | None = None
    each_branch: bool = False
    per_sample: bool = True
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.profile is None:
            whose = "" if self.model is None else f"; those of {self.model!r} do not ship"
            raise MissingProfileError(
                f"SenCache needs the sensitivities of the network, profile=<file>{whose}; measure "
                "them with `erta calibrate --policy sencache`, or Sampler.calibrate(..., "
                "profiler=SensitivityProfiler())"
            )
        for name in GENERIC:
            value = self.setting(name)
            if not value >= 0:
                raise PolicyError(f"SenCache({name}={value}): it must be at least 0")
        if not 0.0 <= self.start <= 1.0:
            raise PolicyError(f"SenCache(start={self.start}): it is a part of the steps")

    # ------------------------------------------------------------------ the settings
    def setting(self, name: str) -> Any:
        """A setting as it is used: given, else published for the model, else the paper's."""
        given = getattr(self, name)
        if given is not None:
            return given
        return GENERIC[name] if self.model is None else read_published("sencache", self.model)[name]

    @cached_property
    def _profile(self) -> Profile:
        return load_profile(self, self.profile, (KIND,))

    @cached_property
    def _table(self) -> Sensitivities:
        return Sensitivities.of(self._profile)

    @cached_property
    def _settings(self) -> Mapping[str, Any]:
        return {name: self.setting(name) for name in GENERIC}

    def prepare(self) -> None:
        _ = self._table, self._settings

    @property
    def traits(self) -> Traits:
        return Traits(
            reads_latents=True,
            memory=Needs(evaluations=1),
            decides=choose_unit(self.per_sample, self.each_branch),
        )

    def calibrator(self) -> Profiler | None:
        return SensitivityProfiler()

    def tolerance(self, index: int, num_steps: int) -> float:
        """`eps` at a step.

        Example:
            >>> policy = SenCache(profile="p.safetensors", eps_start=0.01, eps_main=0.5)
            >>> policy.tolerance(9, 50), policy.tolerance(10, 50)
            (0.01, 0.5)
        """
        early = index < round(self.start * num_steps)
        found: float = self._settings["eps_start" if early else "eps_main"]
        return found

    def explain_forced(self, index: int, num_steps: int) -> str | None:
        """Why a step computes whatever its score; None where the score decides."""
        if index < count_steps(self._settings["first"], num_steps):
            return "first steps"
        if index >= num_steps - count_steps(self._settings["last"], num_steps):
            return "last steps"
        return None

    # ------------------------------------------------------------------ the hooks
    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        self._profile.require(session, (*self.allow, *OWN))
        given, unit = time_unit(session), self._profile.fingerprint[UNIT]
        if given != unit:
            raise ProfileMismatchError(
                f"the sensitivities of {self._profile!r} are tabulated over times that are {unit} "
                f"at sigma 1, in this run the network gets {given} there; calibrate with this "
                "solver"
            )

    @hookimpl
    def decide(self, step: Step, call: Call) -> Decision:
        scope = "branch" if self.each_branch else "step"
        self._is_first(step, call)
        why = self.explain_forced(step.index, step.num_steps)
        if why is not None:
            return Compute(why, scope)
        x, reference = read_latents(call), call.state_of(self, ComputedReference)
        if not reference.fits(x, call.history[0].steps(x.shape[0])):
            return Compute("no reference", scope)
        scores = self._scores(step, x, reference)
        limit = scale_tolerance(self.tolerance(step.index, step.num_steps), x.shape[1:])
        run = [step.index - computed - 1 for computed in reference.steps[: len(scores)]]
        if min(run) >= self._settings["max_skips"]:
            return Compute(f"{min(run)} reused in a row", scope)
        # a sample at the end of its run is one whose score is too high
        bounded = [
            s if k < self._settings["max_skips"] else float("inf")
            for s, k in zip(scores, run, strict=True)
        ]
        return reuse_below(bounded, limit, f"score {max(scores):.4g} of {limit:.4g}", scope)

    def _scores(self, step: Step, x: Tensor, reference: ComputedReference) -> list[float]:
        """The score of each sample; of the first alone where that decides for all."""
        assert reference.latents is not None
        count = x.shape[0] if self.per_sample else 1
        moved: list[float] = latent_norms(x[:count] - reference.latents[:count]).tolist()
        return [
            score_change(*self._table.near(then), far, step.interval.time - then, x.shape[1:])
            for then, far in zip(reference.times, moved, strict=False)
        ]

    def _is_first(self, step: Step, call: Call) -> bool:
        return self.each_branch or step.session.state_of(self, FirstBranch).is_first(step, call)

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        first = self._is_first(step, call)
        output = yield
        # whoever decided: the reference is where the network has run
        if first and call.ran:
            call.state_of(self, ComputedReference).keep(step, read_latents(call), call.rows)
        return output


def count_steps(steps: float, num_steps: int) -> int:
    """Steps of a schedule: a number of them, or a part of all if below 1.

    Example:
        >>> count_steps(1, 50), count_steps(0.02, 100)
        (1, 2)
    """
    return round(steps * num_steps) if steps < 1 else int(steps)
