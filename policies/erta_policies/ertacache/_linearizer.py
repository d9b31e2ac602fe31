"""`ErrorLinearizer`: subtracts an affine prediction of the error of a reused output."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from erta_framework import (
    Call,
    Needs,
    Policy,
    Profile,
    Profiler,
    SessionInfo,
    Step,
    Traits,
    hookimpl,
)
from erta_framework.errors import ProfileError
from erta_policies.ertacache._statistics import KIND, AffineFit, affine_fit
from erta_policies.shared import (
    apply_line,
    load_profile,
    read_branches,
    require_match,
    spread_channels,
)

Line = tuple[Sequence[Any], Sequence[Any]]
"""Slopes and offsets, `[source][step]`: numbers, or tensors that broadcast along the channels."""
Place = tuple[str, int, int, torch.dtype]
"""Branch, source, step, and the type that a line is evaluated in."""


class ErrorLinearizer(Policy):
    """Corrects reused outputs: v^ = v~ - eps^, with eps^ fitted offline.

    ERTACache (arXiv 2508.21091) models eps = v~ - v as sigmoid(K v~ + B) and fits K and B in
    closed form through sigmoid(z) = z/4 + 1/2. Our reading, `"affine"`, also evaluates with that
    linearisation: eps^ = K v~ / 4 + B / 4 + 1/2, which is ordinary least squares. The literal
    `"sigmoid"` with the same K, B is kept for comparison; by our calculation it takes an error of 0
    for sigmoid(-2) = 0.119. The granularity is not published; both choices are ours, and so is
    fitting every pair of steps on the reference trajectory.

    The line is chosen by (branch, step of the newest residual, step), so it follows any skip rule,
    not only ERTACache's. It is fitted to what core reuses: x + residual, or the output
    of a network that predicts no velocity. Another predictor has another error, which
    this line may make worse: measure it, or leave it out. Neither the stored residual nor a
    computed output is changed.

    Attributes:
        profile: File or profile of a `ResidualProfiler`.
        granularity: One line for all channels (`"scalar"`) or one a `"channel"`.
        form: How K and B are evaluated.
        allow: Fingerprint fields of the profile that may differ from the run.

    Raises:
        ProfileMismatchError: The profile was calibrated for another run.
        ProfileError: It has no line for a branch or channel of the run.

    Example:
        >>> ErrorLinearizer(profile="wan.safetensors").form
        'affine'
    """

    traits = Traits(static=True, memory=Needs(evaluations=1))

    profile: str | Path | Profile | None = None
    granularity: Literal["scalar", "channel"] = "scalar"
    form: Literal["affine", "sigmoid"] = "affine"
    allow: tuple[str, ...] = ()

    def prepare(self) -> None:
        if self._fit.slope.shape[-1] == 1:
            _ = self._numbers

    def calibrator(self) -> Profiler | None:
        from erta_policies.ertacache._profiler import ResidualProfiler

        return ResidualProfiler()

    @cached_property
    def _profile(self) -> Profile:
        return load_profile(self, self.profile, (KIND,))

    @cached_property
    def _fit(self) -> AffineFit:
        return affine_fit(self._profile, per_channel=self.granularity == "channel")

    @property
    def _coefficients(self) -> tuple[Tensor, Tensor]:
        fit = self._fit
        # affine: v~ - (slope * v~ + offset) is (1 - slope) * v~ - offset
        return (fit.k, fit.b) if self.form == "sigmoid" else (1 - fit.slope, -fit.offset)

    @cached_property
    def _numbers(self) -> list[Line]:
        # one line for all channels needs no tensors: nothing to index, nothing to copy
        first, second = (table[..., 0].tolist() for table in self._coefficients)
        return list(zip(first, second, strict=True))

    @cached_property
    def _scalars(self) -> dict[Place, tuple[Tensor, Tensor]]:
        # an operation converts a plain number each time, which takes as long as the operation;
        # a tensor without dimensions serves outputs on every device
        return {}

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        require_match(self._profile, session, self.allow)
        session.state_of(self, lambda: self._tables(session))

    def _tables(self, session: SessionInfo) -> dict[str, Line]:
        fit, rows = self._fit, read_branches(self._profile)
        missing = [branch for branch in session.branches if branch not in rows]
        channels = fit.slope.shape[-1]
        if missing or channels not in (1, session.shape[session.channel_dim]):
            raise ProfileError(
                f"{self!r} has lines for branches {', '.join(rows)} with {channels} channels, the "
                f"run has {', '.join(session.branches)} with "
                f"{session.shape[session.channel_dim]}; calibrate for it"
            )
        if channels == 1:
            return dict(zip(rows, self._numbers, strict=True))
        first, second = self._coefficients
        slopes, offsets = (
            spread_channels(
                table.to(session.device, torch.float32), len(session.shape), session.channel_dim
            )
            for table in (first, second)
        )
        return {
            branch: (slopes[row].unbind(0), offsets[row].unbind(0))
            for row, branch in enumerate(rows)
        }

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        output = yield
        if not call.reused or call.ran:
            return output
        tables: dict[str, Line] = step.session.state_of(self, dict)
        if call.branch not in tables:
            raise ProfileError(
                f"{self!r} has lines for branches {', '.join(tables)}, the run has "
                f"{call.branch!r}; calibrate for it"
            )
        source = call.history[0].index
        slopes, offsets = tables[call.branch]
        full = output.dtype is torch.float32 or output.dtype is torch.float64
        wide = output.dtype if full else torch.float32
        slope, offset = slopes[source][step.index], offsets[source][step.index]
        if not isinstance(slope, Tensor):
            slope, offset = self._scalar((call.branch, source, step.index, wide), slope, offset)
        if self.form == "affine":
            return apply_line(output, slope, offset)
        value = output if full else output.float()
        corrected: Tensor = value - torch.sigmoid(apply_line(value, slope, offset))
        return corrected if full else corrected.to(output.dtype)

    def _scalar(self, place: Place, slope: float, offset: float) -> tuple[Tensor, Tensor]:
        known = self._scalars
        if place not in known:
            dtype = place[-1]
            known[place] = torch.tensor(slope, dtype=dtype), torch.tensor(offset, dtype=dtype)
        return known[place]
