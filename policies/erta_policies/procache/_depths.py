"""The depths of the modules: how many there are, and which are deep enough to refresh tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

from erta_framework.modules import Place


def count_depths(own: Sequence[Place]) -> int:
    """How many depths there are, up to the deepest of some places."""
    return 1 + max(place.depth for place in own)


def find_deep(own: Sequence[Place], part: float) -> set[Place]:
    """The places that refresh tokens.

    Args:
        own: Those that are reused.
        part: The part of the depth from which on they do.
    """
    depths = count_depths(own)
    first = min(depths - 1, math.ceil(part * depths - 1e-9))
    return {p for p in own if p.depth >= first and p.kind in ("mlp", "cross")}
