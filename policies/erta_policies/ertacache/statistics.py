"""Pure functions over a residual profile: errors, schedules, phi and affine fits.

Notation of ERTACache (arXiv 2508.21091): v is the network's velocity, the residual is r = v - x,
a reused velocity is v~ = x + r~ with the residual r~ of the last computed step, its error
eps = v~ - v. On a logged trajectory eps equals r~ - r.

Statistics of a residual profile, sums over samples, with T steps, C channels and one row a branch
`b`; a pair `[j, i]` is "the residual of step j stands in at step i":

| name | shape | sum of |
|---|---|---|
| `samples` | `[b, T]` | 1 |
| `ratio` | `[b, T, T]` | `||r_j - r_i||_1 / ||r_i||_1` |
| `phi_velocity` | `[b, T, T]` | `clip(1 - ||v~_i - v_i||_1 / ||v_i||_1, 0, 1)` |
| `phi_difference` | `[b, T, T]` | `clip(1 - ||v~_i - v_i||_1 / ||v_i - v_{i+1}||_1, 0, 1)` |
| `elements` | `[b, T]` | elements of one channel |
| `v`, `vv`, `e`, `ee`, `ve` | `[b, T, T, C]` | v~, v~^2, eps, eps^2, v~ * eps |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from erta_framework import Profile
from erta_framework.errors import ProfileError

KIND = "residual_profiler"
Signal = Literal["first", "mean", "max"]
Form = Literal["velocity", "difference"]


@dataclass(frozen=True, slots=True)
class Plan:
    """A static schedule.

    Attributes:
        computed: Indices of the computed steps, rising.
        sources: For every step, the step whose residual it uses (itself if computed).
        threshold: The lambda that made it, if a threshold walk did.
    """

    computed: tuple[int, ...]
    sources: tuple[int, ...]
    threshold: float | None = None

    @classmethod
    def of(cls, computed: set[int], num_steps: int, threshold: float | None = None) -> Plan:
        """A schedule from its computed steps; step 0 and the last are always added."""
        steps = tuple(sorted(computed | {0, num_steps - 1}))
        sources, newest = [], 0
        for index in range(num_steps):
            newest = index if index in steps else newest
            sources.append(newest)
        return cls(steps, tuple(sources), threshold)

    @property
    def calls(self) -> int:
        """Network calls of each branch."""
        return len(self.computed)


def pair_errors(profile: Profile, signal: Signal = "first") -> Tensor:
    """Relative L1 error `[T, T]` of reusing step j's residual at step i, averaged over samples.

    The average is taken before any comparison with a threshold.

    Args:
        profile: A residual profile.
        signal: Which branch decides: the first (conditional), the mean or the largest.
    """
    counts = profile.statistics["samples"][:, None, :]
    errors = torch.where(counts > 0, profile.statistics["ratio"] / counts.clamp(min=1), torch.inf)
    return combined(errors, signal)


def phi_table(profile: Profile, form: Form, signal: Signal = "first") -> Tensor:
    """Mean step-size factor phi `[T, T]` for every pair, in [0, 1], averaged over samples."""
    counts = profile.statistics["samples"][:, None, :].clamp(min=1)
    return combined(profile.statistics[f"phi_{form}"] / counts, signal)


def combined(values: Tensor, signal: Signal) -> Tensor:
    """Per-branch values `[b, ...]` as one."""
    if signal == "first":
        return values[0]
    return values.mean(dim=0) if signal == "mean" else values.amax(dim=0)


def walk(errors: Tensor, threshold: float, warmup: int = 1) -> Plan:
    """ERTACache's threshold walk on logged residuals.

    Steps are visited in sampling order with the residual of the last computed one; a step whose
    error is below the threshold reuses it, any other is computed.

    Args:
        errors: `[T, T]`, from `pair_errors`.
        threshold: lambda.
        warmup: Steps at the start that are always computed.
    """
    table = errors.tolist()
    num_steps, newest, computed = len(table), 0, {0}
    for index in range(1, num_steps - 1):
        if index < warmup or not table[newest][index] < threshold:
            newest = index
            computed.add(index)
    return Plan.of(computed, num_steps, threshold)


def solve_threshold(errors: Tensor, calls: int, warmup: int = 1) -> Plan:
    """The threshold walk that uses at most `calls` network calls, found by bisection.

    The number of calls jumps as lambda moves; the plan comes closest to `calls` from below.

    Raises:
        ProfileError: Fewer calls than the forced steps, or more than there are steps.
    """
    num_steps = errors.shape[0]
    least = walk(errors, float("inf"), warmup).calls
    if not least <= calls <= num_steps:
        raise ProfileError(
            f"{calls} network calls cannot be scheduled over {num_steps} steps: "
            f"between {least} (first {warmup} and the last step) and {num_steps} are possible"
        )
    finite = errors[errors.isfinite()]
    low, high = 0.0, float(finite.max()) * 1.01 + 1e-12
    best = walk(errors, high, warmup)
    for _ in range(60):
        middle = (low + high) / 2
        plan = walk(errors, middle, warmup)
        if plan.calls <= calls:
            high = middle
            best = plan if plan.calls >= best.calls else best
        else:
            low = middle
    return best if calls < num_steps else walk(errors, 0.0, warmup)


def evenly(calls: int, num_steps: int) -> Plan:
    """`calls` network calls spread evenly over the steps, both ends included.

    Raises:
        ProfileError: Fewer than 2 calls, or more than there are steps.
    """
    if not min(2, num_steps) <= calls <= num_steps:
        raise ProfileError(
            f"{calls} calls cannot be spread over {num_steps} steps: use 2 to {num_steps}"
        )
    if calls == 1:
        return Plan.of(set(), num_steps)
    return Plan.of({round(k * (num_steps - 1) / (calls - 1)) for k in range(calls)}, num_steps)


@dataclass(frozen=True, slots=True)
class AffineFit:
    """Least squares `eps ~ slope * v~ + offset` for every pair, `[b, T, T, C]`.

    `r2` is the share of the variance of eps that it explains, `mean` and `mean_v` the averages of
    eps and v~. In ERTACache's notation K = 4 * slope, B = 4 * (mean - 1/2) - K * mean_v.
    """

    slope: Tensor
    offset: Tensor
    mean: Tensor
    mean_v: Tensor
    r2: Tensor

    @property
    def k(self) -> Tensor:
        """K of the paper's sigmoid form."""
        return 4 * self.slope

    @property
    def b(self) -> Tensor:
        """B of the paper's sigmoid form."""
        return 4 * (self.mean - 0.5) - self.k * self.mean_v


def affine_fit(profile: Profile, per_channel: bool) -> AffineFit:
    """Fit the error of residual reuse for every pair of steps.

    The slope is 0 where v~ has no variance (below 1e-12 an element).

    Args:
        profile: A residual profile.
        per_channel: One line a channel, or one for all channels (`C` is then 1).
    """
    count = profile.statistics["elements"][:, None, :, None]
    sums = {name: profile.statistics[name] for name in ("v", "vv", "e", "ee", "ve")}
    if not per_channel:
        count = count * sums["v"].shape[-1]
        sums = {name: value.sum(dim=-1, keepdim=True) for name, value in sums.items()}
    count = count.clamp(min=1)
    mean_v, mean = sums["v"] / count, sums["e"] / count
    variance = sums["vv"] / count - mean_v**2
    error_variance = sums["ee"] / count - mean**2
    covariance = sums["ve"] / count - mean_v * mean
    slope = torch.where(variance > 1e-12, covariance / variance.clamp(min=1e-12), 0.0)
    r2 = torch.where(
        error_variance > 1e-12, slope * covariance / error_variance.clamp(min=1e-12), 0.0
    )
    return AffineFit(slope, mean - slope * mean_v, mean, mean_v, r2)
