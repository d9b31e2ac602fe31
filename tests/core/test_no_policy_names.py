"""The core names no policy: not in code, not in a docstring, an example or a help text."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "erta_framework"
POINTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "entry-points"
]["erta_framework.policies"]
PLAIN = {
    "at",
    "budget",
    "constant",
    "fitted",
    "forecaster",
    "last_step",
    "max_consecutive",
    "only_between",
    "warm_up",
}
"""Names that are plain words too: only "policy `budget`" names the policy."""
EXCEPTIONS: dict[str, dict[str, str]] = {}
"""What may stay in a file, and why. An exception that nothing needs any more fails too."""


def forbidden() -> re.Pattern[str]:
    classes = {target.partition(":")[2] for target in POINTS.values()}
    plain = {name for name in PLAIN if name in POINTS}
    words = {*POINTS, *classes} - plain - {"At", "Budget"}
    either = "|".join(sorted(map(re.escape, words), key=len, reverse=True))
    quoted = "|".join(sorted(plain))
    return re.compile(rf"\b(?P<name>{either})\b|policy `(?P<plain>{quoted})`", re.IGNORECASE)


def names_in(text: str) -> set[str]:
    return {
        (found["name"] or found["plain"]).lower().removesuffix("config")
        for found in forbidden().finditer(text)
    }


def test_the_search_finds_names_and_leaves_words_alone():
    assert names_in('build_policies([{"skip_policy": {}}])') == {"skip_policy"}
    assert names_in("the schedule of ERTACache's recipe") == {"ertacache"}
    assert names_in("see `ResidualReuse`") == {"residualreuse"}
    assert names_in("cap it with the policy `budget`") == {"budget"}
    assert names_in('{"budget": {"calls": 5}}, a fitted line, warm_up=3, last_step') == set()


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(CORE.rglob("*")) if path.suffix in (".py", ".html", ".css", ".j2")],
    ids=lambda path: str(path.relative_to(CORE)),
)
def test_the_core_names_no_policy(path):
    found = names_in(path.read_text(encoding="utf-8"))
    allowed = set(EXCEPTIONS.get(path.relative_to(CORE).as_posix(), {}))
    assert found == allowed, "name no policy here; the toys of erta_framework.testing may stand in"


def test_every_exception_is_of_a_file_that_is_there():
    assert not [path for path in EXCEPTIONS if not (CORE / path).is_file()]
