"""Pure functions over a residual profile: errors, phi, and affine fits.

Notation of ERTACache (arXiv 2508.21091): v is the network's velocity, the residual is r = v - x,
a reused velocity is v~ = x + r~ with the residual r~ of the last computed step, its error
eps = v~ - v. On a logged trajectory eps equals r~ - r. Where core reuses outputs instead of
residuals (`erta_policies.shared.read_reference`), r is v and v~ the earlier output. The walk, phi
and the affine model of eps are that paper's; logging every pair of steps, and averaging before
comparing, are our reading.

Statistics of a residual profile, sums over samples, with T steps, C channels and one row a branch
`b`, in the order of the fingerprint's `branches`; a pair `[j, i]` is "step i reuses the
residual of step j". A branch that does not run at a step has zeros there:

| name | shape | sum of |
|---|---|---|
| `samples` | `[b, T]` | 1 |
| `ratio` | `[b, T, T]` | `||r_j - r_i||_1 / ||r_i||_1` |
| `phi_velocity` | `[b, T, T]` | `clip(1 - ||v~_i - v_i||_1 / ||v_i||_1, 0, 1)` |
| `phi_difference` | `[b, T, T]` | `clip(1 - ||v~_i - v_i||_1 / ||v_i - v_{i+1}||_1, 0, 1)` |
| `distance` | `[b, T, T]` | mean of `|r_j - r_i|` over elements |
| `velocity` | `[b, T, T]` | mean of `(v_j - v_i)^2` over elements |
| `sigma` | `[T + 1]` | sigma of the nominal schedule |
| `elements` | `[b, T]` | elements of one channel |
| `v`, `vv`, `e`, `ee`, `ve` | `[b, T, T, C]` | v~, v~^2, eps, eps^2, v~ * eps |

Profiles of earlier versions lack `distance`, `velocity` and `sigma`; what needs them says so.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from erta_framework import Profile
from erta_framework.calibration import Entry, ProfileKind, StepSeries
from erta_policies.shared import LineFit, PairMoments, fit_line

__all__ = [
    "KIND",
    "MOMENTS",
    "REPLAY",
    "AffineFit",
    "Form",
    "Signal",
    "affine_fit",
    "pair_errors",
    "phi_table",
]

MOMENTS = ("v", "vv", "e", "ee", "ve")
"""The tensors of `PairMoments` of v~ and eps, in its order."""
_PAIR = Entry(shape="b T T")
_MOMENT = Entry(shape="b T T C")
KIND = ProfileKind(
    "residual_profiler",
    {
        "samples": Entry(shape="b T", counts=True),
        "elements": Entry(shape="b T", counts=True),
        "sigma": Entry(shape="T+1", least=None, monotone="weak", optional=True),
        "ratio": _PAIR,
        "phi_velocity": replace(_PAIR, part_of="samples"),
        "phi_difference": replace(_PAIR, part_of="samples"),
        "distance": replace(_PAIR, optional=True),
        "velocity": replace(_PAIR, optional=True),
        **dict.fromkeys(("vv", "ee"), _MOMENT),
        **dict.fromkeys(("v", "e", "ve"), replace(_MOMENT, least=None)),
    },
    StepSeries("ratio", "samples"),
    facts=("branches",),
)
REPLAY = ProfileKind(
    "replay_profiler", {"error": Entry(shape="T"), "computed": Entry(shape="T", counts=True)}
)
Signal = Literal["first", "mean", "max"]
Form = Literal["velocity", "difference"]


def pair_errors(profile: Profile, signal: Signal = "max") -> Tensor:
    """Relative L1 error `[T, T]` of reusing step j's residual at step i, averaged over samples.

    The error is ERTACache's (arXiv 2508.21091); averaging it over samples before any comparison
    with a threshold is ours. It is infinite where reuse is impossible, because some branch that
    runs at step i did not run at step j.

    Args:
        profile: A residual profile.
        signal: Which branch decides: the first that runs (conditional), the mean or the largest.

    Example:
        >>> pair_errors(profile)[0, 1]  # doctest: +SKIP
        tensor(0.0181, dtype=torch.float64)
    """
    present, usable = find_present_pairs(profile)
    errors = combine_branches(average_samples(profile, "ratio"), present, signal)
    return torch.where(usable, errors, torch.inf)


def phi_table(profile: Profile, form: Form, signal: Signal = "first") -> Tensor:
    """Mean step-size factor phi `[T, T]` for every pair, in [0, 1], averaged over samples.

    Both forms are published for ERTACache (arXiv 2508.21091); the average is ours. Where a form is
    not defined phi is 1: on pairs that cannot be reused and, for `"difference"`, on a step after
    which the branch does not run again, such as the last.

    Args:
        profile: A residual profile.
        form: Which denominator.
        signal: Which branch counts, as in `pair_errors`.

    Example:
        >>> phi_table(profile, "velocity")[0, 1]  # doctest: +SKIP
        tensor(0.9858, dtype=torch.float64)
    """
    present, usable = find_present_pairs(profile)
    defined = present.clone()
    if form == "difference":
        defined[:, :-1] &= present[:, 1:]
        defined[:, -1] = False
    values = combine_branches(average_samples(profile, f"phi_{form}"), defined, signal)
    return torch.where(usable & defined.any(dim=0), values, 1.0)


def find_present_pairs(profile: Profile) -> tuple[Tensor, Tensor]:
    """Whether a branch runs at a step, `[b, T]`, and whether a pair can be reused, `[T, T]`."""
    present = profile.statistics["samples"] > 0
    usable = (present[:, :, None] | ~present[:, None, :]).all(dim=0) & present.any(dim=0)
    return present, usable


def average_samples(profile: Profile, name: str) -> Tensor:
    """A statistic of pairs divided by the number of samples, `[b, T, T]`."""
    return profile.statistics[name] / profile.statistics["samples"][:, None, :].clamp(min=1)


def combine_branches(values: Tensor, present: Tensor, signal: Signal) -> Tensor:
    """Per-branch values `[b, T, T]` as one, over branches present `[b, T]` at the later step."""
    mask = present[:, None, :]
    if signal == "first":
        first = present.int().argmax(dim=0).expand(1, values.shape[1], -1)
        return values.gather(0, first)[0]
    if signal == "mean":
        kept = torch.where(mask, values, 0.0)
        return kept.sum(dim=0) / mask.sum(dim=0).clamp(min=1)
    return torch.where(mask, values, -torch.inf).amax(dim=0)


@dataclass(frozen=True, slots=True)
class AffineFit(LineFit):
    """Least squares `eps ~ slope * v~ + offset` for every pair, `[b, T, T, C]`.

    x is v~ and y is eps. In the notation of ERTACache (arXiv 2508.21091), K = 4 * slope and
    B = 4 * (mean_y - 1/2) - K * mean_x, so that K v~ / 4 + B / 4 + 1/2 is this line.

    Example:
        >>> affine_fit(profile, per_channel=True).slope.shape  # doctest: +SKIP
        torch.Size([2, 50, 50, 4])
    """

    @property
    def k(self) -> Tensor:
        """K of the paper's sigmoid form."""
        return 4 * self.slope

    @property
    def b(self) -> Tensor:
        """B of the paper's sigmoid form."""
        return 4 * (self.mean_y - 0.5) - self.k * self.mean_x


def affine_fit(profile: Profile, per_channel: bool) -> AffineFit:
    """Fit the error of residual reuse for every pair of steps.

    The slope is 0 where v~ has no variance (below 1e-12 an element). Source: ERTACache, arXiv
    2508.21091, error rectification; the granularity is not published, both choices are ours.

    Args:
        profile: A residual profile.
        per_channel: One line a channel, or one for all channels (`C` is then 1).

    Example:
        >>> fit = affine_fit(profile, per_channel=False)  # doctest: +SKIP
        >>> float(fit.slope[0, 3, 5])  # doctest: +SKIP
        -0.0213
    """
    count = profile.statistics["elements"][:, None, :, None]
    moments = PairMoments(count, *(profile.statistics[name] for name in MOMENTS))
    line = fit_line(moments if per_channel else moments.pool(), flat=0.0, least=1e-12)
    return AffineFit(*(getattr(line, each.name) for each in fields(line)))
