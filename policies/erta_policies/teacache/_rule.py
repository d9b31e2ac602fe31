"""`TeaCacheRule`: a skip rule that predicts the output's change from a signal."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from erta_framework import Profile, Profiler, SessionInfo, Step, hookimpl
from erta_framework.errors import PolicyError
from erta_policies.shared import FittedChangeRule, Signal, require_one_option
from erta_policies.teacache._profiler import TeaCacheProfiler
from erta_policies.teacache._settings import Source, profile_of, resolve_source

OWN = ("signal", "target", "reused")
"""Fields of a profile's fingerprint that the policy checks itself, or that do not concern it."""


class TeaCacheRule(FittedChangeRule):
    """Reuses while the predicted change of the output since the last computed step is small.

    A polynomial of degree 4 maps the relative L1 change of a signal from one step to the next,
    reused or not, to that of the output. Its values are summed since the last computed step; a step
    is reused while the sum is below `threshold`. `TeaCache` lists adapters before this rule for the
    steps that are always computed. A reused output is core's own, of a flow `x + residual`;
    published polynomials are for the block stack, `seam="trunk"`.

    Published polynomials are below 0 in places, which lowers the sum. The trace says so in the
    reason of a step, and also where a difference lies outside the range of a profile.

    Source: TeaCache, arXiv 2411.19108, and the repository ali-vilab/TeaCache; the magnitude of the
    polynomial is from ComfyUI-TeaCache. Deciding for each sample of a batch, `clamp_nonnegative`,
    the signal `"latents"` and one decision for all branches on timestep signals are ours. The last
    changes nothing, since these signals are alike in all branches.

    Attributes:
        model: Name of a published polynomial, see `erta_policies.constants.models("teacache")`.
        coefficients: A polynomial of your own instead, highest power first.
        profile: File or profile of a `TeaCacheProfiler` instead, which the polynomial is fitted to.
        threshold: Predicted change at which the network runs again; by default the most careful
            published one of the model.
        signal: Whose change is measured: the input of the first attention, the timestep's
            embedding or Wan's projection of it, or the latents. By default that of the polynomial.
        absolute: Whether to take the polynomial's magnitude.
        clamp_nonnegative: Whether values below 0 count as 0.
        each_branch: Whether every branch decides for itself; by default so for signals that depend
            on the branch, as in the published code.
        per_sample: Decide for each sample of a batch; else the means run over the whole batch, as
            in the published code. At the trunk seam one sample that must be computed computes all.
        allow: Fingerprint fields of the profile that may differ from the run.

    Raises:
        PolicyError: Not exactly one of `model`, `coefficients` and `profile` is given, there is no
            threshold, or a setting is out of range.

    Example:
        >>> TeaCacheRule(model="flux.1-dev").effective_threshold
        0.25
    """

    model: str | None = None
    coefficients: tuple[float, ...] | None = None
    profile: str | Path | Profile | None = None
    threshold: float | None = None
    signal: Signal | None = None
    absolute: bool | None = None
    clamp_nonnegative: bool = False
    each_branch: bool | None = None
    per_sample: bool = True
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        options = ("model=<published>", "coefficients=<your own>", "profile=<file>")
        require_one_option(self, "TeaCache", options, missing="no polynomial")
        if self.coefficients is not None and not self.coefficients:
            raise PolicyError("TeaCache got no coefficients; give them highest power first")
        if self.threshold is not None and not self.threshold >= 0.0:
            raise PolicyError(f"the threshold of TeaCache is {self.threshold}, it must be >= 0")

    # ------------------------------------------------------------------ the settings
    @cached_property
    def _profile(self) -> Profile | None:
        return None if self.profile is None else profile_of(self, self.profile)

    @cached_property
    def source(self) -> Source:
        """The polynomial, its signal and what was published with it."""
        return resolve_source(self, self.model, self.coefficients, self._profile, self.signal)

    @property
    def decides_each_branch(self) -> bool:
        """As `each_branch` says, else never for signals of the timestep."""
        if self.each_branch is not None:
            return self.each_branch
        return super().decides_each_branch

    def calibrator(self) -> Profiler | None:
        # the one signal that every driver has, `erta calibrate` on a bundled model among them
        return TeaCacheProfiler(signal=self.signal or "latents")

    def predict_changes(self, step: Step, differences: Sequence[float]) -> tuple[list[float], str]:
        """The polynomial at these differences, and what makes that doubtful."""
        absolute = self.source.absolute if self.absolute is None else self.absolute
        changes = [self.source.change(d, absolute, self.clamp_nonnegative) for d in differences]
        return changes, self.source.doubts(differences)

    # ------------------------------------------------------------------ the hooks
    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        if self._profile is not None:
            self._profile.require(session, (*self.allow, *OWN))
