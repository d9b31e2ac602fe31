"""`FasterCache`: CFG-Cache and extrapolated attention together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from erta_framework import Policy
from erta_framework.modules import Select
from erta_policies.fastercache._attention import SELF_ATTENTION, AttentionExtrapolation
from erta_policies.fastercache._cfg_cache import CfgCache


class FasterCache(Policy):
    """FasterCache (arXiv 2410.19355) as a recipe: `CfgCache` and `AttentionExtrapolation`.

    List it before a step rule. For a network that is distilled for guidance use
    `AttentionExtrapolation` alone; each of the two serves by itself.

    Attributes:
        preset: Settings of a released script, as in `CfgCache`; None for the general rule, which
            the three settings that follow belong to.
        period: One in so many steps computes both branches.
        interval: One in so many steps runs attention.
        start: Part of the steps at the start that all run as a whole.
        bands: Whether the bands of the difference grow.
        true_cfg: As in `CfgCache`.
        sites: Which modules are extrapolated.

    Raises:
        PolicyError: A setting is out of range.

    Example:
        >>> [part.name for part in FasterCache().parts()]
        ['cfg_cache', 'attention_extrapolation']
    """

    preset: str | None = None
    period: int = 5
    interval: int = 2
    start: float = 1 / 3
    bands: bool = True
    true_cfg: bool = False
    sites: Select = SELF_ATTENTION

    def __post_init__(self) -> None:
        _ = self._made  # refuses settings that do not fit

    @cached_property
    def _made(self) -> tuple[CfgCache, AttentionExtrapolation]:
        cfg = CfgCache(
            preset=self.preset,
            period=self.period,
            start=self.start,
            bands=self.bands,
            true_cfg=self.true_cfg,
        )
        attention = AttentionExtrapolation(
            preset=self.preset,
            interval=self.interval,
            start=self.start,
            sites=self.sites,
            beside=cfg,
        )
        return cfg, attention

    def parts(self) -> Sequence[Policy]:
        return self._made
