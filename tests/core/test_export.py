"""Schedules in the words of other caches, and what cannot be said in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erta_framework.budgets import export_schedule, plan_export, write_export
from erta_framework.budgets.formats import as_mask
from erta_framework.config import build_policies
from erta_framework.errors import InputError, PolicyError

LISTED = [{"skip_policy": {"steps": [0, 3, 4, 6]}}]


def test_the_mask_has_a_one_where_a_step_computes() -> None:
    plan = plan_export(build_policies(LISTED), 7)
    assert plan.computed == (0, 3, 4, 6)
    assert as_mask(plan) == [1, 0, 0, 1, 1, 0, 1]
    assert export_schedule(plan, "cache-dit") == {
        "policy": "skip_policy",
        "num_steps": 7,
        "computed": [0, 3, 4, 6],
        "DBCacheConfig": {
            "steps_computation_mask": [1, 0, 0, 1, 1, 0, 1],
            "steps_computation_policy": "static",
            "num_inference_steps": 7,
        },
        "steps_mask": {"compute_bins": [1, 2, 1], "cache_bins": [2, 1], "total_steps": 7},
    }


@given(st.integers(1, 40), st.sets(st.integers(0, 39)))
def test_our_magcache_computes_the_exported_steps(num_steps: int, steps: set[int]) -> None:
    listed = sorted(step for step in steps if step < num_steps)
    plan = plan_export(build_policies([{"skip_policy": {"steps": listed}}]), num_steps)
    settings = export_schedule(plan, "magcache")
    (mag,) = build_policies([{"magcache": settings["magcache"]}])
    assert mag.plan(num_steps).computed == plan.computed  # type: ignore[attr-defined]


def test_a_recipe_exports_the_schedule_of_its_part(tmp_path: Path) -> None:
    plan = plan_export(build_policies([{"fora": {"interval": 3}}]), 8)
    path = write_export(plan, "cache-dit", tmp_path / "new" / "mask.json")
    found = json.loads(path.read_text())
    assert found["computed"] == [0, 1, 4, 7]
    assert found["policy"] == "refresh_interval"


@pytest.mark.parametrize(
    ("policies", "said"),
    [
        (["easycache"], "plans ahead"),
        ([{"last_step": {}}, *LISTED], "last_step decides beside skip_policy"),
        ([*LISTED, "easycache"], "easy_cache decides beside skip_policy"),
        ([*LISTED, *LISTED], "skip_policy decides beside skip_policy"),
        (
            [{"magcache": {"model": "wan2.2-i2v-a14b", "high_steps": 15}}],
            "other steps for each of the branches cond, uncond",
        ),
    ],
)
def test_what_one_list_of_steps_cannot_say_is_refused(policies: list[object], said: str) -> None:
    with pytest.raises((InputError, PolicyError), match=said):
        plan_export(build_policies(policies), 40)


def test_an_unknown_cache_is_refused() -> None:
    with pytest.raises(InputError, match=r"no export to 'magcash'; .*magcache"):
        export_schedule(plan_export(build_policies(LISTED), 7), "magcash")
