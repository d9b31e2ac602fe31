"""What the fuzz tests share: a seed that reproduces a failure, and how many examples to try.

    ERTA_FUZZ_SEED=7 pytest tests/fuzz            another seed; the default is fixed
    ERTA_FUZZ_EXAMPLES=100000 pytest tests/fuzz   as many examples in every test
    pytest tests/fuzz -m slow                     the longer versions

A test takes `rng`, a `random.Random` of the seed and of its own name, and loops over
`range(examples(300))`. So it tries the same examples whichever tests run beside it. A failed test
shows the seed.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

SEED = 20261129


@pytest.fixture(scope="session")
def fuzz_seed() -> int:
    """The seed of all fuzz tests: `ERTA_FUZZ_SEED`, else a fixed one."""
    return int(os.environ.get("ERTA_FUZZ_SEED", SEED))


@pytest.fixture
def rng(request: pytest.FixtureRequest, fuzz_seed: int) -> random.Random:
    """A generator of this test alone."""
    return random.Random(f"{fuzz_seed}:{request.node.name}")


@pytest.fixture(scope="session")
def examples() -> Callable[[int], int]:
    """How many examples to try: `ERTA_FUZZ_EXAMPLES`, else the number that the test gives."""

    def count(default: int) -> int:
        return int(os.environ.get("ERTA_FUZZ_EXAMPLES", default))

    return count


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> object:
    report = yield
    if report.failed:
        seed = os.environ.get("ERTA_FUZZ_SEED", SEED)
        report.sections.append(("fuzz", f"reproduce with ERTA_FUZZ_SEED={seed}"))
    return report
