"""`ResidualReuse`: the predictor of a reused output."""

from __future__ import annotations

from torch import Tensor

from erta_framework import Call, Needs, Policy, Traits, hookimpl


class ResidualReuse(Policy):
    """Predicts a reused output as `x + residual` of the newest evaluation.

    For velocities of flows that is core's own default; listed, it makes the choice visible and
    comes before predictors that are listed after it. For networks that predict noise, a clean
    sample or v it is wrong, and the trace says so: there core reuses the output, and this policy is
    for those who want to see the difference.

    Source: ERTACache, arXiv 2508.21091; the same rule as EasyCache, arXiv 2507.02860.

    Example:
        >>> ResidualReuse().traits.memory.evaluations
        1
    """

    traits = Traits(static=True, memory=Needs(evaluations=1), reads_residual=True)

    @hookimpl
    def forward(self, call: Call) -> Tensor | None:
        return call.x + call.history[0].residual if call.reused else None
