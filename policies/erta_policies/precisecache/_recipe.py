"""`PreciseCache`: LFCache for steps, and BlockCache for the blocks of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from erta_framework import Policy
from erta_framework.errors import PolicyError
from erta_policies.lfcache import LFCache
from erta_policies.precisecache._block_cache import BlockCache

Variant = Literal["base", "turbo", "flash"]
ALPHAS: Mapping[Variant, float] = MappingProxyType({"base": 0.5, "turbo": 0.7, "flash": 0.7})
"""Published values of LFCache's alpha."""


class PreciseCache(Policy):
    """Leaves out whole steps by `LFCache`, and blocks of the steps that run by `BlockCache`.

    PreciseCache, arXiv 2603.00976, as a recipe. Base and Turbo are `LFCache` with `alpha` 0.5 and
    0.7. Flash is Turbo with `BlockCache`. No code was released, and all is known from secondary
    sources; see the two for what is ours. LFCache's trials run all blocks of the network.

    Attributes:
        variant: Which of the published three.
        alpha: Of `LFCache`; None takes that of the variant.
        skip_ratio: Of `BlockCache`, in Flash.
        length: The same.
        steps: An `LFCache` with other settings, which then has its own alpha.

    Raises:
        PolicyError: There is no such variant, or two alphas.

    Example:
        >>> [part.name for part in PreciseCache(variant="flash").parts()]
        ['lf_cache', 'block_cache']
    """

    variant: Variant = "turbo"
    alpha: float | None = None
    skip_ratio: float = 0.4
    length: int = 3
    steps: LFCache | None = None

    def __post_init__(self) -> None:
        if self.variant not in ALPHAS:
            raise PolicyError(
                f"PreciseCache has no variant {self.variant!r}; give one of {', '.join(ALPHAS)}"
            )
        if self.steps is not None and self.alpha is not None:
            raise PolicyError(
                f"PreciseCache got alpha={self.alpha} and {self.steps!r}, which has its own; give "
                "one of them"
            )

    def parts(self) -> Sequence[Policy]:
        """The skip rule, and for Flash what leaves out blocks."""
        alpha = ALPHAS[self.variant] if self.alpha is None else self.alpha
        steps = LFCache(alpha=alpha) if self.steps is None else self.steps
        if self.variant != "flash":
            return (steps,)
        return steps, BlockCache(skip_ratio=self.skip_ratio, length=self.length)
