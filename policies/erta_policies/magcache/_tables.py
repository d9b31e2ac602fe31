"""Tables of magnitude ratios: published, given, or measured in a profile."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from erta_framework import Profile
from erta_framework.calibration import Entry, ProfileKind, StepSeries
from erta_framework.errors import PolicyError, ProfileError
from erta_policies.constants import read_published
from erta_policies.shared import read_branches

KIND = ProfileKind(
    "mag_cache_profiler",
    {
        "samples": Entry(shape="b T", counts=True),
        "ratio": Entry(shape="b T"),
        "square": Entry(shape="b T"),
        "cosine": Entry(shape="b T", least=None),  # 0 up to rounding where nothing turned
    },
    StepSeries("ratio", "samples", about=1.0),
    facts=("branches",),
)
EVERY = "all"
"""Name of the one table that serves every branch."""


@dataclass(frozen=True, slots=True)
class Tables:
    """Ratios of each branch.

    Attributes:
        ratios: By branch, `"all"` where one table serves every branch; the first entry is 1.
        interleaved: Whether the published code counts the calls of all branches together.
        settings: Published thresholds and variants of the rule, as far as there are any.
    """

    ratios: Mapping[str, tuple[float, ...]]
    interleaved: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


def read_published_ratios(model: str, branches: Sequence[str]) -> Tables:
    """The published tables of a model; `branches` renames theirs, in their order.

    Raises:
        PolicyError: Nothing was published for it, or the number of branches differs.
    """
    found = read_published("magcache", model)
    tables: dict[str, list[float]] = found["tables"]
    names = tuple(branches) or tuple(tables)
    if EVERY in tables and branches:
        raise PolicyError(
            f"the table of {model!r} serves every branch alike; drop branches={list(branches)}"
        )
    if len(names) != len(tables):
        raise PolicyError(
            f"branches={list(branches)} names {len(names)} branches, the tables of {model!r} are "
            f"for {', '.join(tables)}; name one branch of the run for each, in that order"
        )
    ratios = {
        name: tuple(check_ratios(values))
        for name, values in zip(names, tables.values(), strict=True)
    }
    return Tables(ratios, bool(found["interleaved"]), found)


def read_listed_ratios(ratios: Sequence[float], branches: Sequence[str]) -> Tables:
    """Given ratios; with `branches` they alternate between these, as the published lists do.

    Raises:
        PolicyError: There are none, one is not positive, or they cannot be dealt out.
    """
    if not branches:
        return Tables({EVERY: tuple(check_ratios(ratios))})
    many = len(branches)
    if not ratios or len(ratios) % many:
        raise PolicyError(
            f"{len(ratios)} ratios cannot be dealt out to the {many} branches "
            f"{', '.join(branches)}; give one for each branch and step, in turns"
        )
    dealt = {name: tuple(check_ratios(ratios[k::many])) for k, name in enumerate(branches)}
    return Tables(dealt, interleaved=True)


def read_calibrated_ratios(profile: Profile) -> Tables:
    """The mean ratios of a profile of `MagCacheProfiler`.

    Raises:
        ProfileError: A branch was never observed.
    """
    sums, samples = profile.statistics["ratio"], profile.statistics["samples"]
    names = read_branches(profile)
    ratios = {}
    for name, total, count in zip(names, sums, samples, strict=True):
        if not bool((count[1:] > 0).all()):
            raise ProfileError(
                f"this profile has no ratios of branch {name!r} at some steps; calibrate over "
                "whole runs with every branch"
            )
        means = torch.where(count > 0, total / count.clamp_min(1), torch.ones_like(total))
        ratios[name] = tuple(check_ratios([1.0, *means[1:].tolist()]))
    return Tables(ratios)


def check_ratios(ratios: Sequence[float]) -> Sequence[float]:
    """The ratios, if every one is a positive number.

    Raises:
        PolicyError: One is not, or there are none.
    """
    wrong = [ratio for ratio in ratios if not 0.0 < ratio < math.inf]
    if wrong or not ratios:
        raise PolicyError(f"magnitude ratios are positive numbers, got {wrong or 'none'}")
    return ratios
