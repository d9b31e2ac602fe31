"""Lets warnings of third parties pass, and needs diffusers."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

collect_ignore_glob = [] if find_spec("diffusers") else ["test_*.py"]
FILTERS = (
    "ignore:__array__ implementation doesn:DeprecationWarning",  # schedulers, NumPy 2
    "ignore:__array_wrap__ must accept:DeprecationWarning",
    "ignore:`FluxPosEmbed` is deprecated:FutureWarning",  # Chroma's own import
    "ignore:In CPU autocast:UserWarning",  # Mochi's rotary embedding
    "ignore:`LoraLoaderMixin` is deprecated:FutureWarning",  # PRX' own base class
    "ignore:.*weight_norm` is deprecated:FutureWarning",  # Stable Audio's VAE
)


def pytest_itemcollected(item: pytest.Item) -> None:
    for rule in FILTERS:
        item.add_marker(pytest.mark.filterwarnings(rule))
