"""Settings for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# no test asserts anything about time
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

TESTS = Path(__file__).parent
OF_THE_CORE = tuple(
    TESTS / name
    for name in ("cli", "core", "integrations/fabric", "masked", "report", "sampling", "testing")
)
"""What the coverage of the core is measured on; it makes a test twice as slow."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Do not trace the tests of policies, pipelines and benchmarks, which are most."""
    for item in items:
        if not any(folder in item.path.parents for folder in OF_THE_CORE):
            item.add_marker("no_cover")
