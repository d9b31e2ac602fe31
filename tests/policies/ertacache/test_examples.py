"""The examples in the docstrings do what they show, and every public object has one."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect

import pytest

from erta_framework import Policy
from erta_policies import ertacache
from erta_policies.ertacache import _predictions, _schedule, _statistics

MODULES = (
    "adjuster",
    "linearizer",
    "predictions",
    "predictor",
    "profiler",
    "recipe",
    "replay",
    "schedule",
    "skip",
    "statistics",
)
PUBLIC = [getattr(ertacache, name) for name in ertacache.__all__]
POLICIES = [item for item in PUBLIC if isinstance(item, type) and issubclass(item, Policy)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(f"erta_policies.ertacache._{name}")
    result = doctest.testmod(module)
    assert result.failed == 0


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.__name__)
def test_every_policy_names_its_source_and_shows_an_example(policy: type) -> None:
    text = inspect.getdoc(policy) or ""
    assert "arXiv 2508.21091" in text
    assert ">>> " in text
    options = [field.name for field in dataclasses.fields(policy)]
    assert all(f"    {name}: " in text for name in options), "every option is documented"


def test_every_function_of_a_profile_shows_an_example() -> None:
    found = [getattr(_statistics, name) for name in _statistics.__all__]
    found += [_predictions.total_error, _predictions.predict_errors, _predictions.errors_on_arrival]
    found += [_schedule.reused_pairs, _schedule.walk, _schedule.solve_threshold]
    for item in found:
        if inspect.isfunction(item) or inspect.isclass(item):
            assert ">>> " in (inspect.getdoc(item) or ""), item
