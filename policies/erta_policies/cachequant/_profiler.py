"""`FeatureProfiler`: how the tensor that a place hands on changes from step to step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from erta_framework import Profile, SessionInfo
from erta_framework.calibration import Entry, ProfileKind
from erta_framework.errors import CapabilityError, PolicyError
from erta_framework.modules import Cut, Of, Select, Selection
from erta_policies.shared import (
    ROWS,
    ModuleProfiler,
    PairMoments,
    Seen,
    find_channels,
    require_match,
)

MOMENTS = ("x", "xx", "y", "yy", "xy")
"""The tensors of `PairMoments` of an earlier feature and this one."""
_PAIR = Entry(shape="b P T S L")
_MOMENT = Entry(shape="b P T S L C", least=None)
KIND = ProfileKind(
    "feature_profiler",
    {
        "samples": Entry(shape="b P T", counts=True),
        "distance": _PAIR,
        "elements": Entry(shape="b P T S L", counts=True),
        **dict.fromkeys(MOMENTS, _MOMENT),
    },
    facts=("branches", ROWS, "of"),
)
"""Statistics of the features of P places that are S tensors of C channels, over T steps.

Entry `[.., t, s, l, ..]` compares tensor s at step t with that l + 1 steps before: the sum of
absolute differences, how many numbers a channel has, and the moments of its line.
"""


def find_kept(sites: Select | Cut) -> Of:
    """What is kept of such places: the output of a cut or a module, the residual of blocks."""
    return "residual" if isinstance(sites, Select) and sites.kind == ("block",) else "output"


class FeatureProfiler(ModuleProfiler):
    """Observes full runs and sums how the tensors that will be reused change over the steps.

    For each step and each of the 2N - 1 steps before it, it sums the L1 distance of the features
    and the moments of a line for each channel. So one profile serves every interval up to N, the
    grouping and the correction. Features come from one uncached run, as published: what a reused
    step does to later features is not seen. Profiles of batches and prompts merge by adding.

    Source: CacheQuant, arXiv 2503.01323; distances of one step to those a few before it, and sums
    in place of 8 and 32 held samples, are ours.

    Attributes:
        sites: The tensor: a `Cut` of a UNet, or blocks of a transformer as a span.
        interval: N, the largest interval that the profile is to serve.

    Raises:
        PolicyError: The interval is below 1.
        CapabilityError: The tensors of a place have different numbers of channels.

    Example:
        >>> FeatureProfiler(interval=5).window
        9
    """

    kind = KIND

    sites: Select | Cut = Cut()
    interval: int = 5

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise PolicyError(f"interval of {self.name} is {self.interval}, it must be at least 1")

    @property
    def of(self) -> Of:  # type: ignore[override]
        """What is watched."""
        return find_kept(self.sites)

    @property
    def selects(self) -> Sequence[Selection]:
        """The places."""
        return (self.sites,)

    @property
    def window(self) -> int:
        """As far back as the longest group reaches."""
        return 2 * self.interval - 1

    def measure(self, now: Seen, before: Sequence[Seen]) -> Mapping[str, Tensor]:
        """The distances and moments of one place at one step."""
        channels = {feature.shape[find_channels(feature)] for feature in now.outputs}
        if len(channels) > 1:
            raise CapabilityError(
                f"{self.name} compares the tensors of {now.place} channel by channel, but they "
                f"have {' and '.join(map(str, sorted(channels)))} channels; select single modules"
            )
        form = (len(now.outputs), self.window)
        found = {name: torch.zeros(*form, dtype=torch.float64) for name in ("distance", "elements")}
        found |= {name: torch.zeros(*form, *channels, dtype=torch.float64) for name in MOMENTS}
        for lag, earlier in enumerate(before):
            for k, (x, y) in enumerate(zip(earlier.outputs, now.outputs, strict=True)):
                moments = PairMoments.of(x, y, find_channels(y))
                found["distance"][k, lag] = (y - x).abs().sum(dtype=torch.float64)
                found["elements"][k, lag] = moments.count
                for name in MOMENTS:
                    found[name][k, lag] = getattr(moments, name)
        return found

    def facts(self) -> Mapping[str, str]:
        """What was watched."""
        return {"of": self.of}


def match_features(profile: Profile, session: SessionInfo, allow: Sequence[str]) -> None:
    """Refuse a run that the profile was not calibrated for; places are compared where they are met.

    Raises:
        ProfileMismatchError: Names every field that differs.
    """
    require_match(profile, session, (*allow, ROWS, "of"))


def read_moments(profile: Profile, pooled: bool) -> PairMoments:
    """The sums of a profile, `[b, P, T, S, L, C]`; `b` is 1 where branches are pooled."""
    found = {name: profile.statistics[name] for name in ("elements", *MOMENTS)}
    if pooled:
        found = {name: value.sum(dim=0, keepdim=True) for name, value in found.items()}
    return PairMoments(found["elements"][..., None], *(found[name] for name in MOMENTS))
