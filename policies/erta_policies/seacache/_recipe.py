"""`SeaCache`: the rule, the steps that it always computes, and the predictor."""

from __future__ import annotations

from collections.abc import Sequence

from erta_framework import Policy
from erta_framework.errors import PolicyError
from erta_policies.adapters import LastStep, MaxConsecutive, WarmUp
from erta_policies.forecast import Forecaster
from erta_policies.seacache._rule import SeaCacheRule
from erta_policies.shared import Mixing


class SeaCache(Policy):
    """SeaCache (arXiv 2602.18993) as a recipe: forced steps, `SeaCacheRule` and `Forecaster`.

    The defaults are those of diffusers' SeaCache hooks: a line through the last two computed
    residuals is the predictor, the first and last step are computed, and no more than two are
    reused in a row. The released code of the paper reuses the last residual (`order=0`) and has no
    limit in a row (`max_consecutive=None`). Both take the residual of the block stack, this one
    that of the whole network; of a network that predicts no velocity its output, which is ours.

    Attributes:
        threshold: As in `SeaCacheRule`, like the three that follow.
        power: Exponent of the power spectrum.
        mixing: How latents and noise are mixed.
        per_sample: Decide for each sample of a batch.
        order: 1 continues the residual as a line over step indices, 0 reuses it.
        first: Steps at the start that are computed.
        last: Steps at the end that are computed.
        max_consecutive: Most steps that are reused in a row; None is no limit.
        predictor: The line, another policy, or False for core's own predictor.

    Raises:
        PolicyError: A setting is out of range.

    Example:
        >>> [part.name for part in SeaCache().parts()]
        ['warm_up', 'last_step', 'max_consecutive', 'sea_cache_rule', 'forecaster']
    """

    threshold: float = 0.25
    power: float = 3.0
    mixing: Mixing | None = None
    per_sample: bool = True
    order: int = 1
    first: int = 1
    last: int = 1
    max_consecutive: int | None = 2
    predictor: bool | Policy = True

    def __post_init__(self) -> None:
        if self.order not in (0, 1):
            raise PolicyError(f"the order of SeaCache is {self.order}, it must be 0 or 1")
        if self.first < 0 or self.last < 0:
            raise PolicyError(
                f"SeaCache has first={self.first} and last={self.last}; they must be at least 0"
            )

    def parts(self) -> Sequence[Policy]:
        found: list[Policy] = [WarmUp(steps=self.first)] if self.first else []
        if self.last:
            found.append(LastStep(steps=self.last))
        if self.max_consecutive is not None:
            found.append(MaxConsecutive(steps=self.max_consecutive))
        found.append(
            SeaCacheRule(
                threshold=self.threshold,
                power=self.power,
                mixing=self.mixing,
                per_sample=self.per_sample,
            )
        )
        if self.predictor is True:
            found.append(Forecaster(order=self.order, over="index", what="reused"))
        elif isinstance(self.predictor, Policy):
            found.append(self.predictor)
        return tuple(found)
