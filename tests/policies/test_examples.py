"""The examples in the docstrings of every module of the policies do what they show."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import erta_policies

MODULES = [found.name for found in pkgutil.walk_packages(erta_policies.__path__, "erta_policies.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_do_what_they_show(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_examples_exist() -> None:
    found = [doctest.DocTestFinder().find(importlib.import_module(name)) for name in MODULES]
    assert sum(bool(test.examples) for tests in found for test in tests) > 100
