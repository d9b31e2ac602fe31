"""`ChannelCorrection`: a reused feature is moved along a line for each channel."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from erta_framework import Profile, Profiler, SessionInfo
from erta_framework.errors import ProfileError
from erta_framework.modules import Of, Parts, Place
from erta_policies.at import Correction
from erta_policies.cachequant._profiler import KIND, FeatureProfiler, match_features, read_moments
from erta_policies.shared import (
    ChannelAffine,
    LineFit,
    fit_line,
    load_profile,
    read_branches,
    read_rows,
)

Lines = dict[tuple[int, int, int, tuple[int, ...]], tuple[ChannelAffine, ...]]
"""Lines that were made, by branch, row, step and steps since; one of each serves many places."""


class ChannelCorrection(Correction):
    """Uses `a1[k] * X_cached + b1[k]` in place of a reused feature, with a line for each channel.

    CacheQuant (arXiv 2503.01323) splits the error of its output into that of the cache and that of
    the quantisation; this is its correction of the first part. With the refresh r of step k,
    `a1 = cov(X_r, X_k) / var(X_r)` and `b1 = mean(X_k) - a1 mean(X_r)`, over samples and positions.
    What is kept stays as it is, so corrections do not add up. The line of a channel that hardly
    varies is a shift, which is ours. It needs no quantised network.

    Attributes:
        profile: File or profile of a `FeatureProfiler`.
        each_branch: A line for each guidance branch; by default one for all, as published.
        shrink: Pulls slopes towards 1, see `fit_line`; ours.
        allow: Fingerprint fields of the profile that may differ from the run.

    Raises:
        ProfileMismatchError: The profile was calibrated for another run.
        ProfileError: It has no line for a place, branch or distance of the run.

    Example:
        >>> ChannelCorrection(profile="unet.safetensors").each_branch
        False
    """

    profile: str | Path | Profile | None = None
    each_branch: bool = False
    shrink: float = 0.0
    allow: tuple[str, ...] = ()

    def calibrator(self) -> Profiler | None:
        return FeatureProfiler()

    def prepare(self) -> None:
        _ = self._fit, self._rows

    @cached_property
    def _profile(self) -> Profile:
        return load_profile(self, self.profile, (KIND,))

    @cached_property
    def _fit(self) -> LineFit:
        moments = read_moments(self._profile, pooled=not self.each_branch)
        return fit_line(moments, shrink=self.shrink)

    @cached_property
    def _rows(self) -> tuple[str, ...]:
        return read_rows(self._profile)

    def check_session(self, session: SessionInfo) -> None:
        """Refuse a run that the profile was not made for."""
        match_features(self._profile, session, self.allow)

    def correct(self, index: int, call: Parts, place: Place, of: Of) -> tuple[ChannelAffine, ...]:
        """The lines from the steps at which the place was kept, by sample, to this one."""
        measured = self._profile.fingerprint["of"]
        if place.path not in self._rows or of != measured:
            raise ProfileError(
                f"{self!r} has lines for the {measured} of {', '.join(self._rows)}, but the {of} "
                f"of {place} is reused; calibrate this place"
            )
        lags = tuple(index - stamp[0] for stamp in call.stamps(place)[0])
        if len(set(lags)) == 1:
            lags = lags[:1]
        key = (self._find_branch(call), self._rows.index(place.path), index, lags)
        made: Lines = call.state_of(self, dict)
        if key not in made:
            made[key] = self._make(*key)
        return made[key]

    def _find_branch(self, call: Parts) -> int:
        if not self.each_branch:
            return 0
        known = read_branches(self._profile)
        if call.branch not in known:
            raise ProfileError(
                f"{self!r} has lines for branches {', '.join(known)}, the run has "
                f"{call.branch!r}; calibrate for it, or give each_branch=False"
            )
        return known.index(call.branch)

    def _make(
        self, branch: int, row: int, index: int, lags: tuple[int, ...]
    ) -> tuple[ChannelAffine, ...]:
        slope, offset = self._fit.slope[branch, row, index], self._fit.offset[branch, row, index]
        if max(lags) > slope.shape[1]:
            raise ProfileError(
                f"{self!r} has lines up to {slope.shape[1]} steps back, step {index} reuses a "
                f"feature of {max(lags)} steps before; calibrate with a longer interval"
            )
        chosen = torch.tensor([lag - 1 for lag in lags])
        return tuple(
            ChannelAffine(squeeze(slope[s, chosen]), squeeze(offset[s, chosen]), who=self.name)
            for s in range(len(slope))
        )


def squeeze(values: Tensor) -> Tensor:
    """`[C]` where all samples share a line, `[R, C]` where they do not."""
    return values[0] if len(values) == 1 else values
