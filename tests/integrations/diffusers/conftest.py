"""Makes `families` importable here, and lets warnings of third parties pass."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
collect_ignore_glob = [] if find_spec("diffusers") else ["test_*.py"]
FILTERS = (
    "ignore:__array__ implementation doesn:DeprecationWarning",  # schedulers, NumPy 2
    "ignore:__array_wrap__ must accept:DeprecationWarning",
    "ignore:`FluxPosEmbed` is deprecated:FutureWarning",  # Chroma's own import
    "ignore:In CPU autocast:UserWarning",  # Mochi's rotary embedding
)


def pytest_itemcollected(item: pytest.Item) -> None:
    for rule in FILTERS:
        item.add_marker(pytest.mark.filterwarnings(rule))
