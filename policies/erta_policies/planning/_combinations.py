"""Errors of combinations of several computed velocities, and the search over schedules for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from erta_framework import Profile
from erta_policies.ertacache import Signal, average_samples, combine_branches, find_present_pairs
from erta_policies.planning._costs import read_sigmas, read_statistic

RIDGE = 1e-4
"""Keeps the weights of almost equal velocities small; relative to the square of each difference."""
REACH = 4
"""How far one move of the search shifts a computed step."""


@dataclass(slots=True)
class CombinationErrors:
    """Errors of combinations of computed velocities, from their distances alone.

    Attributes:
        distances: Mean squared distances of the velocities of all pairs of steps, `[b, T, T]`.
        present: Whether a branch runs at a step, `[b, T]`.
        sizes: Lengths of the steps, in the share of the noise, `[T]`; see `to_noise_shares`.
        weights: How much an error at a step counts, `[T]`.
        depth: How many velocities are combined.
        signal: How branches combine.
        known: Errors computed so far, by the steps that are combined: a search needs many twice.
    """

    distances: Tensor
    present: Tensor
    sizes: list[float]
    weights: list[float]
    depth: int
    signal: Signal
    known: dict[tuple[int, ...], list[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, profile: Profile, depth: int, growth: float, signal: Signal) -> CombinationErrors:
        """From a residual profile."""
        read_statistic(profile, "velocity", "multistep")
        apart = average_samples(profile, "velocity")
        grid = to_noise_shares(read_sigmas(profile, "multistep"))
        present, _ = find_present_pairs(profile)
        return cls(
            distances=apart + apart.transpose(1, 2),
            present=present,
            sizes=grid.diff().abs().tolist(),
            weights=(growth * grid[:-1] / grid.max()).exp().tolist(),
            depth=depth,
            signal=signal,
        )

    def total(self, steps: Sequence[int]) -> float:
        """Cost of a schedule: the weighted sum of the squared errors of its gaps.

        The error of a gap is the sum, over its reused steps, of the step's length times the error
        of the best combination there.
        """
        ends = [*steps[1:], len(self.sizes)]
        found = 0.0
        for place, (start, end) in enumerate(zip(steps, ends, strict=True)):
            nodes = tuple(steps[max(0, place + 1 - self.depth) : place + 1])
            errors = self.errors_after(nodes)
            gap = sum(self.sizes[step] * errors[step] for step in range(start + 1, end))
            found += self.weights[start] * gap**2
        return found

    def errors_after(self, nodes: tuple[int, ...]) -> list[float]:
        """Root mean square error of the best combination of these steps at every step, `[T]`."""
        if nodes not in self.known:
            each = [
                solve_combination(distances, [n for n in nodes if bool(self.present[branch, n])])
                for branch, distances in enumerate(self.distances)
            ]
            errors = combine_branches(torch.stack(each).sqrt()[:, None], self.present, self.signal)[
                0
            ]
            self.known[nodes] = errors.tolist()
        return self.known[nodes]


def to_noise_shares(sigmas: Tensor) -> Tensor:
    """A sigma grid as the share of the noise in `(1 - s) * clean + s * noise`, from 0 to 1.

    The sigma of a flow is that share, and stays; so does a noise level, which is never above 1.
    The ratio of noise and clean part, which goes to 15 or 150, is `s = sigma / (1 + sigma)` in it.
    In the ratio itself the first few steps would be nearly the whole length, and each gap after
    them would count the same.

    Example:
        >>> to_noise_shares(torch.tensor([3.0, 1.0, 0.0]))
        tensor([0.7500, 0.5000, 0.0000])
    """
    return sigmas / (1 + sigmas) if float(sigmas.max()) > 1.0 else sigmas


def solve_combination(distances: Tensor, nodes: Sequence[int]) -> Tensor:
    """Mean squared errors of the best affine combinations at all steps, `[T]`.

    Infinite where there is nothing to combine. With n the newest node and `u_k = v_k - v_n` for
    the m others, weights that add up to 1 give the combination `v_n + sum_k w_k u_k`, and w is
    free. Its squared distance to v_t, with `e_t = v_t - v_n`, is a least squares problem,

    `|e_t - sum_k w_k u_k|^2 = |e_t|^2 - 2 w . right_t + w . square w`,

    whose Gram matrix `square[k, l] = <u_k, u_l>`, `[m, m]`, and right side
    `right[k, t] = <u_k, e_t>`, `[m, T]`, follow from distances `d` alone by the law of cosines:
    `2 <u_k, u_l> = d(k, n) + d(l, n) - d(k, l)`. A small ridge keeps the weights of almost equal
    velocities finite; the error is that of the weights with the ridge, never below the best one.

    Args:
        distances: Squared distances of all pairs of steps, `[T, T]`.
        nodes: The steps that are combined, the newest last.

    Example:
        >>> line = torch.tensor([0.0, 1.0, 3.0])
        >>> distances = (line[:, None] - line[None, :]) ** 2
        >>> solve_combination(distances, [1]).tolist()
        [1.0, 0.0, 4.0]
        >>> bool(solve_combination(distances, [0, 1])[2] < 1e-4)  # on the line through both
        True
    """
    if not nodes:
        return torch.full_like(distances[0], torch.inf)
    *others, newest = nodes
    apart = distances[newest]
    if not others:
        return apart
    own = distances[others, newest]
    square = 0.5 * (own[:, None] + own[None, :] - distances[others][:, others])
    right = 0.5 * (own[:, None] + apart[None, :] - distances[others])
    penalty = torch.where(own > 0, RIDGE * own, 1.0)
    weights = torch.linalg.solve(square + torch.diag(penalty), right)
    left: Tensor = apart - 2 * (weights * right).sum(0) + (weights * (square @ weights)).sum(0)
    return left.clamp(min=0)


def search_shifts(errors: CombinationErrors, start: Sequence[int]) -> tuple[int, ...]:
    """Move one computed step at a time, but for the first, until no move lowers the cost.

    A local search: each step in turn is shifted by up to `REACH`, the first shift that helps is
    kept, and rounds repeat until one changes nothing. Invariant: `least` is the cost of `steps`,
    and every kept shift lowers it by a share that rounding cannot make, so that the search ends.
    """
    steps, least = list(start), errors.total(start)
    moving = True
    while moving:
        moving = False
        for place in range(1, len(steps)):
            for shift in (*range(-REACH, 0), *range(1, REACH + 1)):
                moved = steps[place] + shift
                if not 0 < moved < len(errors.sizes) or moved in steps:
                    continue
                tried = sorted([*steps[:place], moved, *steps[place + 1 :]])
                cost = errors.total(tried)
                if cost < least * (1 - 1e-9):
                    steps, least, moving = tried, cost, True
                    break
    return tuple(steps)
