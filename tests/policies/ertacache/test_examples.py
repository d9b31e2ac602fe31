"""The examples in the docstrings do what they show, and every public object has one."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect

import pytest

from erta_policies import ertacache
from erta_policies.ertacache import predictions, schedule, statistics

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
    "source",
    "statistics",
)
PUBLIC = [getattr(ertacache, name) for name in ertacache.__all__]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(f"erta_policies.ertacache.{name}")
    result = doctest.testmod(module)
    assert result.failed == 0


@pytest.mark.parametrize("policy", PUBLIC, ids=lambda policy: policy.__name__)
def test_every_policy_names_its_source_and_shows_an_example(policy: type) -> None:
    text = inspect.getdoc(policy) or ""
    assert "arXiv 2508.21091" in text
    assert ">>> " in text
    options = [field.name for field in dataclasses.fields(policy)]
    assert all(f"    {name}: " in text for name in options), "every option is documented"


def test_every_function_of_a_profile_shows_an_example() -> None:
    found = [getattr(statistics, name) for name in statistics.__all__]
    found += [predictions.total_error, predictions.predict_errors, predictions.errors_on_arrival]
    found += [schedule.reused_pairs, schedule.walk, schedule.solve_threshold]
    for item in found:
        if inspect.isfunction(item) or inspect.isclass(item):
            assert ">>> " in (inspect.getdoc(item) or ""), item
