"""Normal equations of the fit: sums over samples, solved and judged step by step.

The idea: with the Q = n + 4 quantities q of `features` (n + 2 features and two targets), the
squared error of any combination is a quadratic form in its weights, `s' M s` with the matrix
M = sum q q' over samples and elements. So a profile has to hold M alone, `[FOLDS, T, C, Q, Q]`:
whatever is fitted, and its error on samples that it was not fitted to, follows from M without the
samples. Sums of M add up, so batches merge by adding; M without a fold is the total minus the fold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from erta_policies.fitted import _features as features
from erta_policies.fitted._features import EXTRA, TARGETS

FOLDS = 8
"""Parts of the samples that take turns in being held out."""
Toward = Literal["taylor", "velocity", "plain"]
TOWARD: tuple[Toward, ...] = ("taylor", "velocity", "plain")


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How a fit is made; profiles merge only if they share them.

    Attributes:
        velocities: How many computed velocities are combined.
        latent: Whether the latents are as well.
        displacement: Whether their displacement since the newest computed step is.
        trajectory: Share of the trajectory target; the rest is the local one.
        ridge: Penalty, relative to the mean square of each quantity.
        toward: Index in `TOWARD` of the rule that the penalty pulls to.
        bound: Largest absolute weight that is accepted.
        computed: Whether computed steps are corrected too.
        averaged: Whether forecasts are means over the step, as under a solver without memory.
    """

    velocities: int
    latent: int
    displacement: int
    trajectory: float
    ridge: float
    toward: int
    bound: float
    computed: int
    averaged: int

    def interval(self, start: float, end: float) -> tuple[float, float]:
        """The interval that a forecast is the mean over; multistep solvers average themselves."""
        return (start, end) if self.averaged else (start, start)

    def row(self) -> Tensor:
        """The settings as numbers, float64 `[9]`."""
        numbers = [float(getattr(self, f.name)) for f in fields(self)]
        return torch.tensor(numbers, dtype=torch.float64)

    @classmethod
    def of(cls, row: Sequence[float]) -> FitSettings:
        """From the numbers of `row`."""
        velocities, latent, displacement, trajectory, ridge, toward, bound, *flags = row
        return cls(
            int(velocities),
            int(latent),
            int(displacement),
            trajectory,
            ridge,
            int(toward),
            bound,
            *map(int, flags),
        )


@dataclass(frozen=True, slots=True, eq=False)
class StepChoice:
    """What is done at one step.

    Attributes:
        name: `fitted N` with N velocities, `taylor`, `velocity` or `plain`.
        weights: Of the features, `[C, n + 2]`.
        error: Squared error per sample and element on samples that were not fitted to.
    """

    name: str
    weights: Tensor
    error: float


def find_folds(x: Tensor) -> Tensor:
    """The fold of each sample, `[n]`.

    They follow from the noise, so that batches of one sample spread over all of them.

    Args:
        x: The latents at the start, `[n, C, ...]`.
    """
    digest = hashlib.sha256(x[:1].float().cpu().contiguous().numpy().tobytes())
    first = int.from_bytes(digest.digest()[:4], "big")
    return (torch.arange(len(x), device=x.device) + first) % FOLDS


def sum_products(values: Sequence[Tensor], folds: Tensor, per_channel: bool) -> Tensor:
    """Sum the products of all pairs of quantities, `[FOLDS, C or 1, Q, Q]`.

    Args:
        values: Q features and targets, each `[B, C, ...]`.
        folds: Fold of each sample, `[B]`.
        per_channel: Keep channels apart.
    """
    stacked = torch.stack([value.flatten(2) for value in values], dim=2)  # [B, C, Q, N]
    each = stacked @ stacked.mT
    if not per_channel:
        each = each.sum(dim=1, keepdim=True)
    total = each.new_zeros(FOLDS, *each.shape[1:])
    return total.index_add_(0, folds, each)


def choose_weights(
    moments: Tensor,
    settings: FitSettings,
    nodes: Sequence[float],
    interval: tuple[float, float],
    computed: bool,
) -> StepChoice:
    """Choose between plain reuse, the newest velocity, Taylor and the fits, by held-out error.

    A fit is judged by its error on each fold after fitting to the other folds; with fewer than two
    folds there are no fits. On a computed step that must not be corrected the output stays.

    Args:
        moments: `[FOLDS, C, Q, Q]` of one step.
        settings: How to fit.
        nodes: Nodes of the computed steps so far, newest first; see `SolverVariable`.
        interval: Nodes where the step starts and ends.
        computed: Whether the network runs at this step.
    """
    depth = settings.velocities
    moments = moments.double()
    total = moments.sum(dim=0)
    rules = {
        "velocity": features.velocity_weights(depth),
        "taylor": features.line_weights(nodes, *settings.interval(*interval), depth),
        "plain": features.plain_weights(depth),
    }
    fixed = {name: total.new_tensor(row).expand(len(total), -1) for name, row in rules.items()}
    target = target_weights(settings)
    candidates = [
        StepChoice(name, weights, float(squared_error(total, weights, target)))
        for name, weights in fixed.items()
    ]
    if computed and not settings.computed:
        return candidates[0]
    prior = fixed[TOWARD[settings.toward]]
    filled = moments.diagonal(dim1=-2, dim2=-1).sum(dim=(1, 2)) > 0
    if int(filled.sum()) > 1:
        for count in range(1, min(depth, len(nodes)) + 1):
            used = [*range(count), *[depth] * settings.latent, *[depth + 1] * settings.displacement]
            # fit to all folds but one, judge by that one
            parts = total - moments[filled]
            apart = [solve_ridge(part, used, prior, target, settings.ridge) for part in parts]
            error = sum(
                float(squared_error(own, weights, target))
                for own, weights in zip(moments[filled], apart, strict=True)
            )
            weights = solve_ridge(total, used, prior, target, settings.ridge)
            rows = [features.to_raw_weights(row, depth) for row in weights.tolist()]
            largest = max(abs(value) for row in rows for value in row)
            if largest <= settings.bound and bool(weights.isfinite().all()):
                candidates.append(StepChoice(f"fitted {count}", weights, error))
    # the first of equal ones: where the newest velocity is exact, nothing is done
    return min(candidates, key=lambda one: one.error)


def target_weights(settings: FitSettings) -> Tensor:
    """The target as weights of all quantities, `[Q]`: shares of local and trajectory target."""
    row = torch.zeros(settings.velocities + EXTRA + TARGETS).double()
    row[-2], row[-1] = 1 - settings.trajectory, settings.trajectory
    return row


def squared_error(moments: Tensor, weights: Tensor, target: Tensor) -> Tensor:
    """Sum over channels of the squared error of a combination, a number.

    The error is combination minus target, itself a combination s of all quantities, so its square
    is `s' M s`.

    Args:
        moments: M, `[C, Q, Q]`.
        weights: Of the features, `[C, n + 2]`.
        target: Of all quantities, `[Q]`.
    """
    spread = -target.expand(len(moments), -1).clone()
    spread[:, : weights.shape[-1]] += weights
    spread = spread.to(moments)
    return torch.einsum("cq,cqr,cr->", spread, moments, spread).clamp(min=0)


def solve_ridge(
    moments: Tensor, used: Sequence[int], prior: Tensor, target: Tensor, ridge: float
) -> Tensor:
    """Solve least squares with a penalty for the weights, `[C, n + 2]`.

    Minimises the squared error plus, for each quantity, `ridge` times its own sum of squares times
    the squared distance of its weight from `prior`. With A, b the rows and columns of M that are
    used and D the penalties, that is `(A + D) w = b + D prior`. Quantities that are not used weigh
    0, whatever `prior` gives them.
    """
    index = torch.tensor(used)
    square = moments[:, index][:, :, index]
    right = (moments @ target.to(moments))[:, index]
    own = square.diagonal(dim1=-2, dim2=-1)
    penalty = ridge * own
    # a quantity that is 0 everywhere keeps its prior instead of making the system singular
    penalty = torch.where(own > 0, penalty + 1e-14 * own, 1.0)
    weights = torch.linalg.solve(
        square + torch.diag_embed(penalty), right + penalty * prior[:, index]
    )
    row = torch.zeros_like(prior)
    row[:, index] = weights
    return row
