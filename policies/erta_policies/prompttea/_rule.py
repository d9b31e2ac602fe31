"""`PromptTeaRule`: a skip rule that predicts the output's change from the timestep alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from erta_framework import Call, Profile, Profiler, SessionInfo, Step, hookimpl
from erta_framework.errors import PolicyError
from erta_policies.prompttea._profilers import RegressionProfiler
from erta_policies.prompttea._regression import (
    EXPONENTS,
    KIND,
    Regression,
    fit_regression,
    is_network,
    load_published_regression,
)
from erta_policies.shared import FittedChangeRule, Signal, load_profile, require_one_option

OWN = ("signal", "target", "reused", "num_steps", "sigma_grid")
"""Fields of a profile's fingerprint that the policy checks itself, bridges or does not need."""


class PromptTeaRule(FittedChangeRule):
    """Reuses while the change predicted from the timestep's embedding and the step is small.

    A regression over 12 products of powers of the signal's relative L1 change and of the step index
    predicts the output's change. Its values are summed since the last computed step; a step is
    reused while the sum is below `threshold`. The signal holds neither the noisy latents nor the
    prompt, so all branches and samples agree. A reused output is core's own, of a flow
    `x + residual`; published regressions are for the block stack, `seam="trunk"`.

    The step index enters up to its fourth power, so a regression holds for the number of steps that
    it was fitted to. For another number the index is stretched to it, which is ours. The trace says
    so in the reason of each step, and also where a prediction is below 0.

    Source: PromptTea, arXiv 2507.06739, and the repository zishen-ucap/PromptTea.

    Attributes:
        model: Name of a published regression, see `erta_policies.constants.models("prompttea")`.
        coefficients: 12 numbers of your own instead, in the order 1, x, t, x², t², xt, x³, t³, x²t,
            xt², x⁴, t⁴.
        intercept: Added to them, with `coefficients`.
        steps: Steps that `coefficients` were fitted to; 0 takes the step index as it is.
        profile: File or profile of a `RegressionProfiler` instead, which is fitted to it.
        threshold: Predicted change at which the network runs again; by default the published fixed
            one of the model.
        signal: Whose change is measured; by default that of the regression.
        network: Name of the network it decides for, in a pipeline of two; others are passed on.
        per_sample: Decide for each sample of a batch, where the signal has one row for each.
        allow: Fingerprint fields of the profile that may differ from the run.

    Raises:
        PolicyError: Not exactly one of `model`, `coefficients` and `profile` is given, there is no
            threshold, or a setting is out of range.

    Example:
        >>> PromptTeaRule(model="hunyuanvideo").effective_threshold
        0.15
    """

    model: str | None = None
    coefficients: tuple[float, ...] | None = None
    intercept: float = 0.0
    steps: int = 0
    profile: str | Path | Profile | None = None
    threshold: float | None = None
    signal: Signal | None = None
    network: str | None = None
    per_sample: bool = False
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        options = ("model=<published>", "coefficients=<your own>", "profile=<file>")
        require_one_option(self, "PromptTea", options, missing="no regression")
        if self.coefficients is not None and len(self.coefficients) != len(EXPONENTS):
            raise PolicyError(
                f"PromptTea got {len(self.coefficients)} coefficients, its regression has "
                f"{len(EXPONENTS)} features"
            )
        if self.threshold is not None and not self.threshold >= 0.0:
            raise PolicyError(f"the threshold of PromptTea is {self.threshold}, it must be >= 0")
        if self.steps < 0:
            raise PolicyError(f"PromptTea has steps={self.steps}; it must be at least 0")

    # ------------------------------------------------------------------ the settings
    @cached_property
    def _profile(self) -> Profile | None:
        return None if self.profile is None else load_profile(self, self.profile, (KIND,))

    @cached_property
    def source(self) -> Regression:
        """The regression and what was published beside it.

        Raises:
            PolicyError: It is for another signal or network than the one asked for.
        """
        if self.model is not None:
            found = load_published_regression(self.model, self.network)
        elif self.coefficients is not None:
            signal = self.signal or "timestep_projection"
            found = Regression(self.coefficients, self.intercept, self.steps, signal)
        else:
            assert self._profile is not None
            found = fit_regression(self._profile)
        if self.signal not in (None, found.signal):
            raise PolicyError(
                f"{self!r} asks for the signal {self.signal!r}, but its regression is for "
                f"{found.signal!r}; drop signal=..., or give coefficients of your own"
            )
        return found

    def calibrator(self) -> Profiler | None:
        return RegressionProfiler(signal=self.signal or "timestep_projection", network=self.network)

    def concerns(self, call: Call) -> bool:
        """Only calls of its network."""
        return is_network(self.network, call.model)

    def predict_changes(self, step: Step, differences: Sequence[float]) -> tuple[list[float], str]:
        """The regression at these differences and this step, and what makes that doubtful."""
        source = self.source
        position = source.position(step.index, step.num_steps)
        changes = [source.change(d, position) for d in differences]
        return changes, source.doubts(differences, changes, step.num_steps)

    # ------------------------------------------------------------------ the hooks
    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        if self._profile is not None:
            self._profile.require(session, (*self.allow, *OWN))
