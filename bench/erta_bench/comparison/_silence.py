"""Runs without the logs and warnings that a comparison expects."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

from erta_framework.errors import UnusedWarning


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """What is switched on and what skips nothing is counted anyway, and is the row's status.

    Other projects' caches log when they are switched on. A search tries settings that skip nothing.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnusedWarning)
            yield
    finally:
        logging.disable(before)
