"""Migrate to 0.2: what the page says of old and new names is so."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from erta_framework import (
    Compute,
    Engine,
    Interval,
    Needs,
    Policy,
    Profile,
    Seam,
    SessionInfo,
    Traits,
    hookimpl,
)
from erta_framework._deprecated import RENAMED_MEMBERS
from erta_framework.calibration import make_fingerprint
from erta_framework.errors import PolicyError

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "integrations/erta_integrations/shapes_wan/weights"
PAGE = (ROOT / "docs/how-to/migrate-to-0.2.md").read_text(encoding="utf-8")
NAME = re.compile(r"`([A-Za-z_][\w.]*)(?:\(\))?`")


def rows(heading: str) -> list[list[list[str]]]:
    """The names in backticks in each cell of the last table under a heading."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[NAME.findall(cell) for cell in line.strip("| ").split(" | ")] for line in lines]


MODULES = [
    (old, new[0] if new else None, names[0] if names else [])
    for cells in rows("Modules")
    for old in cells[0]
    for new, *names in [cells[1:]]
]
NEW_NAMES = [name for cells in rows("Other names") for name in cells[1] if name.startswith("erta_")]


@pytest.mark.parametrize(("old", "new", "names"), MODULES, ids=[old for old, *_ in MODULES])
def test_a_module_is_where_the_page_says(old: str, new: str | None, names: list[str]) -> None:
    with pytest.raises(ModuleNotFoundError, match="No module named"):
        import_module(old)
    if new is None:
        assert "private" in PAGE
        return
    module = import_module(new)
    assert [name for name in names if not hasattr(module, name)] == []


@pytest.mark.parametrize("name", NEW_NAMES)
def test_a_new_name_exists(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert hasattr(import_module(module), attribute)


def test_the_page_lists_enough_to_check() -> None:
    assert len(MODULES) > 35
    assert len(NEW_NAMES) > 20


def test_the_page_lists_the_members_that_are_refused() -> None:
    listed = {old for cells in rows("A policy") for old in cells[0]}
    assert listed == {*RENAMED_MEMBERS, "calibration_prompts"}


@pytest.mark.parametrize("member", RENAMED_MEMBERS)
def test_a_member_of_the_first_version_is_refused_with_its_new_name(member: str) -> None:
    with pytest.raises(PolicyError, match=re.escape(f"write {RENAMED_MEMBERS[member]} instead")):
        type("Old", (Policy,), {member: True})


def test_a_setting_may_have_the_name_of_a_former_member() -> None:
    held = type("Held", (Policy,), {"__annotations__": {"copies": int}, "copies": 2})
    assert held(copies=3).copies == 3


def info() -> SessionInfo:
    return SessionInfo(
        sigmas=(1.0, 0.0),
        times=(1000.0,),
        shape=(1, 1, 2, 2),
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def test_a_decision_for_a_branch_must_be_declared() -> None:
    class Undeclared(Policy):
        traits = Traits(memory=Needs(evaluations=1))

        @hookimpl
        def decide(self, step):
            return Compute("this branch", scope="branch")

    x = torch.zeros(1, 1, 2, 2)
    several = replace(info(), sigmas=(1.0, 0.5, 0.0), times=(1000.0, 500.0))
    with Engine([Undeclared()]).session(several) as session:
        session.begin(Interval(0, 1.0, 0.5, 1000.0, 500.0), branches=("cond",))
        session.forward(x, lambda: x, branch="cond")
        session.settle()
        session.end(x)
        session.begin(Interval(1, 0.5, 0.0, 500.0, 0.0), branches=("cond",))
        with pytest.raises(PolicyError, match='decides="branch"'):
            session.forward(x, lambda: x, branch="cond")


def test_the_seam_of_a_profile_has_the_key_that_it_had() -> None:
    assert "model.seam" not in make_fingerprint(info())
    assert make_fingerprint(replace(info(), seam=Seam.TRUNK))["model.seam"] == "trunk"


def test_a_profile_of_the_first_version_loads() -> None:
    profile = Profile.load(WEIGHTS / "shapes-wan-50.profile.safetensors")
    assert profile.provenance["date"] == "2026-11-25", "measured again since: take another file"
    of_the_model = {"model.component", "model.config", "model.network"}
    assert set(profile.fingerprint) == set(make_fingerprint(info())) | of_the_model
