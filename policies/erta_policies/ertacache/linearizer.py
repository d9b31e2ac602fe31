"""`ErrorLinearizer`: subtracts an affine prediction of the error of a reused output."""

from __future__ import annotations

from collections.abc import Generator
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from erta_framework import Call, Needs, Policy, Profile, SessionInfo, Step, hookimpl
from erta_policies.ertacache.source import loaded
from erta_policies.ertacache.statistics import KIND, AffineFit, affine_fit

Line = tuple[Tensor, Tensor]


class ErrorLinearizer(Policy):
    """Corrects reused outputs: v^ = v~ - eps^, with eps^ fitted offline.

    ERTACache (arXiv 2508.21091) models eps = v~ - v as sigmoid(K v~ + B) and fits K and B in
    closed form through sigmoid(z) = z/4 + 1/2. `"affine"` evaluates with the linearisation that
    fitted it, eps^ = K v~ / 4 + B / 4 + 1/2, which is ordinary least squares; evaluating the
    literal `"sigmoid"` with the same K, B is biased near eps = 0 and is kept for comparison.

    The line is chosen by (branch, step of the reused residual, step), so it follows any skip rule,
    not only ERTACache's. The stored residual is never changed.

    Attributes:
        profile: File or profile of a `ResidualProfiler`.
        granularity: One line for all channels (`"scalar"`) or one a `"channel"`.
        form: How K and B are evaluated.
        allow: Fingerprint fields of the profile that may differ from the run.

    Example:
        >>> ErrorLinearizer(profile="wan.safetensors").form
        'affine'
    """

    static = True

    profile: str | Path | Profile | None = None
    granularity: Literal["scalar", "channel"] = "scalar"
    form: Literal["affine", "sigmoid"] = "affine"
    allow: tuple[str, ...] = ()

    def prepare(self) -> None:
        _ = self._fit

    def needs(self) -> Needs:
        return Needs(evaluations=1)

    def calibrator(self) -> Policy | None:
        from erta_policies.ertacache.profiler import ResidualProfiler

        return ResidualProfiler()

    @cached_property
    def _profile(self) -> Profile:
        return loaded(self, self.profile, (KIND,))

    @cached_property
    def _fit(self) -> AffineFit:
        return affine_fit(self._profile, per_channel=self.granularity == "channel")

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        self._profile.require(session, self.allow)
        session.state_of(self, lambda: self._tables(session))

    def _tables(self, session: SessionInfo) -> dict[str, Line]:
        fit = self._fit
        first, second = (fit.k, fit.b) if self.form == "sigmoid" else (fit.slope, fit.offset)
        rows = zip(session.branches, first, second, strict=False)
        kind = {"device": session.device, "dtype": torch.float32}
        return {branch: (a.to(**kind), b.to(**kind)) for branch, a, b in rows}

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        output = yield
        if not call.reused or call.ran:
            return output
        tables: dict[str, Line] = step.session.state_of(self, dict)
        shape = (1, -1, *[1] * (output.ndim - 2))
        first, second = (
            table[call.history[0].index, step.index].reshape(shape) for table in tables[call.branch]
        )
        error = first * output + second
        if self.form == "sigmoid":
            error = torch.sigmoid(error)
        return (output - error).to(output.dtype)
