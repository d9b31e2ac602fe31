"""`Forecaster` and `MeanVelocity`: predictors that combine several earlier evaluations."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Literal

from torch import Tensor

from erta_framework import Call, Evaluation, Needs, Policy, Seam, Step, Traits, hookimpl
from erta_framework.errors import PolicyError
from erta_policies.forecast import _coefficients as coefficients

Basis = Literal["taylor", "hermite", "newton", "adams"]
Quantity = Literal["residual", "output", "x0", "reused"]
MOST = 6


class LinearForecast(Policy):
    """Base of predictors whose forecast is a weighted sum of the newest computed evaluations.

    A subclass says how many it sums in `evaluations`, and gives their `weights`. Such a forecast
    also continues modules of the network, see `At`.

    Source: ours.

    Attributes:
        over: What the evaluations are a function of.
        what: Which quantity is continued: the `residual` output - input, the `output`, or for
            velocity predictions `x0`, the clean sample `x - sigma * velocity`. `reused` is what
            core reuses: the residual, or for networks that predict no velocity the output.
        since: First step whose evaluations are used; the newest is used in any case.
    """

    over: Literal["sigma", "index"] = "sigma"
    what: Quantity = "output"
    since: int = 0

    @property
    def evaluations(self) -> int:
        """How many evaluations it sums at most."""
        raise NotImplementedError(f"{type(self).__name__} does not say how many it sums")

    @property
    def averages(self) -> bool:
        """Whether it gives the mean over a step, and not the value at its start."""
        return False

    def weights(self, nodes: Sequence[float], start: float, end: float) -> tuple[float, ...]:
        """Weights of evaluations at `nodes`, newest first, for the interval from `start`."""
        raise NotImplementedError(f"{type(self).__name__} does not weigh evaluations")

    @property
    def traits(self) -> Traits:
        pairs = self.what in ("output", "x0")
        memory = Needs(evaluations=self.evaluations, pairs=pairs)
        if self.what != "x0":
            return Traits(static=True, memory=memory, reads_residual=self.what == "residual")
        # a clean sample follows from latents and a velocity only
        requires, seams = frozenset({"velocity"}), frozenset({Seam.LATENT})
        return Traits(static=True, requires=requires, seams=seams, memory=memory)

    @hookimpl
    def forward(self, step: Step, call: Call) -> Tensor | None:
        if not call.reused:
            return None
        newest, *older = call.history[: self.evaluations]
        used = [newest, *(e for e in older if e.index >= self.since)]
        interval = step.interval
        if self.over == "sigma":
            nodes, start, end = [e.sigma for e in used], interval.start, interval.end
        else:
            nodes, start, end = [float(e.index) for e in used], float(step.index), step.index + 1.0
        weights = self.weights(nodes, start, end)
        what = step.session.reused if self.what == "reused" else self.what
        forecast = sum_weighted([read_quantity(e, what) for e in used], weights)
        if what == "residual":
            return call.x + forecast
        if what == "x0":
            return (call.x - forecast) / interval.start
        return forecast


class Forecaster(LinearForecast):
    """Predicts a reused output from the newest `order + 1` computed evaluations.

    One family for the published forecasts: `taylor` is TaylorSeer's (arXiv 2503.06923), `hermite`
    HiCache's (arXiv 2508.16984), both on the output of the whole network instead of every block,
    as TaylorSeer's lite variant does. `newton` is the exact polynomial and `adams` its mean over
    the interval, variable-step Adams-Bashforth; these two on whole outputs are ours, and so is
    counting in sigma. Published code counts in step indices: `over="index"`.

    Until enough evaluations exist, the order is as high as they allow.

    Attributes:
        basis: How the evaluations are continued.
        order: 0 is plain reuse, 1 a line, 2 a parabola.
        over: What the evaluations are a function of.
        what: Which quantity is continued: the `residual` output - input, the `output`, or for
            velocity predictions `x0`, the clean sample `x - sigma * velocity`. `reused` is what
            core reuses: the residual, or for networks that predict no velocity the output.
        scale: sigma of the Hermite basis.
        since: First step whose evaluations are used; the newest is used in any case.

    Raises:
        PolicyError: A setting is out of range, or `adams` is to count in indices.

    Example:
        >>> Forecaster(order=1).traits.memory.evaluations
        2
    """

    basis: Basis = "newton"
    order: int = 1
    scale: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.order <= MOST:
            raise PolicyError(f"the order of Forecaster is {self.order}, outside 0 to {MOST}")
        if self.basis == "adams" and (self.over == "index" or self.what != "output"):
            raise PolicyError(
                "the adams basis averages the output over an interval of sigma; "
                f"it got over={self.over!r} and what={self.what!r}"
            )
        if not self.scale > 0.0:
            raise PolicyError(f"the scale of Forecaster is {self.scale}, it must be positive")

    @property
    def evaluations(self) -> int:
        return self.order + 1

    @property
    def averages(self) -> bool:
        return self.basis == "adams"

    def weights(self, nodes: Sequence[float], start: float, end: float) -> tuple[float, ...]:
        if self.basis == "hermite":
            return coefficients.hermite(nodes, start, end, self.scale)
        rule: Callable[[Sequence[float], float, float], tuple[float, ...]] = getattr(
            coefficients, self.basis
        )
        return rule(nodes, start, end)


class MeanVelocity(Policy):
    """Integrates with the mean of the output over the interval, on computed steps as well.

    The mean of the polynomial through the newest evaluations over the interval of this step:
    variable-step Adams-Bashforth on the computed steps. With order 1 and an Euler solver the
    sample is that of Adams-Bashforth 2 on the grid of the computed steps.

    Source: ours, in place of the correction of MeanCache (arXiv 2601.19961): its mean velocity over
    an edge becomes the trapezoid of two computed ones.

    Attributes:
        order: 0 changes nothing, 1 is second order.

    Raises:
        PolicyError: The order is out of range.

    Example:
        >>> MeanVelocity().traits.memory.evaluations
        2
    """

    order: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.order <= MOST:
            raise PolicyError(f"the order of MeanVelocity is {self.order}, outside 0 to {MOST}")

    @property
    def traits(self) -> Traits:
        return Traits(
            requires=frozenset({"first_order"}),
            static=True,
            corrects_computed=True,
            memory=Needs(evaluations=self.order + 1, pairs=True),
        )

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        output = yield
        earlier = [(e.sigma, read_quantity(e, "output")) for e in call.history]
        if call.ran:
            earlier.insert(0, (step.interval.start, output))
        used = earlier[: self.order + 1]
        nodes = [sigma for sigma, _ in used]
        weights = coefficients.adams(nodes, step.interval.start, step.interval.end)
        return sum_weighted([value for _, value in used], weights)


def read_quantity(evaluation: Evaluation, what: Literal["residual", "output", "x0"]) -> Tensor:
    """The quantity of one evaluation that a forecast continues."""
    if what == "x0":
        return evaluation.tensor("input") - evaluation.sigma * evaluation.tensor("output")
    return evaluation.tensor(what)


def sum_weighted(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """`sum_k weights[k] * values[k]`, one pass over the memory for each value."""
    total = values[0] * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total.add_(value, alpha=weight)
    return total
