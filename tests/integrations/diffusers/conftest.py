"""Makes `families` importable here, and lets warnings of third parties pass."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
FILTERS = (
    "ignore:__array__ implementation doesn:DeprecationWarning",  # schedulers, NumPy 2
    "ignore:`FluxPosEmbed` is deprecated:FutureWarning",  # Chroma's own import
    "ignore:In CPU autocast:UserWarning",  # Mochi's rotary embedding
)


def pytest_itemcollected(item: pytest.Item) -> None:
    for rule in FILTERS:
        item.add_marker(pytest.mark.filterwarnings(rule))
