"""`ResidualReuse`: the predictor of a reused output."""

from __future__ import annotations

from torch import Tensor

from erta_framework import Call, Needs, Policy, Traits, hookimpl


class ResidualReuse(Policy):
    """Predicts a reused output as `x + residual` of the newest evaluation, core's own default.

    Listed, it makes the choice visible and comes before predictors that are listed after it.
    Source: ERTACache, arXiv 2508.21091; the same rule as EasyCache, arXiv 2507.02860.

    Example:
        >>> ResidualReuse().traits.memory.evaluations
        1
    """

    traits = Traits(static=True, memory=Needs(evaluations=1))

    @hookimpl
    def forward(self, call: Call) -> Tensor | None:
        return call.x + call.history[0].residual if call.reused else None
