"""Schedule files of papers: ratios, paths, components, and lists of our policies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erta_framework import Sampler
from erta_framework.budgets import StepSchedule
from erta_framework.budgets.formats import (
    ScheduleDocument,
    load_format,
    read_schedule,
    write_schedule,
)
from erta_framework.config import build_policies
from erta_framework.errors import ConfigError, ErtaError, InputError
from erta_framework.testing import GaussianMixtureFlow
from erta_policies.constants import models, read_published
from erta_policies.magcache import MagCache, MagCacheProfiler
from erta_policies.meancache import read_tables
from erta_policies.schedule_formats import describe_ratios


def parse(form: str, data: Any, num_steps: int | None = None, **options: Any) -> ScheduleDocument:
    return load_format(form).parse(data, "given.json", num_steps, options)


def again(form: str, document: ScheduleDocument, num_steps: int | None = None) -> ScheduleDocument:
    written = load_format(form).settings(document, {})
    return parse(form, json.loads(json.dumps(written)), num_steps)


ONE_NETWORK = [
    name for name in models("magcache") if not read_published("magcache", name).get("experts")
]


# ---------------------------------------------------------------------------------- ratios
@pytest.mark.parametrize("model", ONE_NETWORK)
def test_a_published_table_decides_the_same_as_one_list(model: str) -> None:
    policy = MagCache(model=model)
    steps = int(read_published("magcache", model)["steps"])
    document = describe_ratios(policy, steps)
    found = again("magcache", document, steps)
    assert found.own == document.own
    plans = {name: each.computed for name, each in policy.plans(steps).items()}
    assert {name: each.computed for name, each in found.schedules.items()} == plans


def test_published_lists_alternate_between_the_branches() -> None:
    published = read_published("magcache", "wan2.1-t2v-1.3b")
    cond, uncond = published["tables"]["cond"], published["tables"]["uncond"]
    listed = [ratio for pair in zip(cond, uncond, strict=True) for ratio in pair]
    rule: dict[str, Any] = {"threshold": 0.12, "max_skips": 2, "retention": 0.2, "strict": True}
    branches = {"branches": ["cond", "uncond"]}
    given = parse("magcache", listed, **branches, **rule)
    omitted = parse("magcache", listed[2:], **branches, **rule, first="omitted")
    ours = MagCache(model="wan2.1-t2v-1.3b", square_root=False).plans(50)
    for name in ("cond", "uncond"):
        assert given.schedules[name].computed == ours[name].computed
    assert given.own == omitted.own
    assert given.own["magcache"]["ratios"] == listed


@pytest.mark.parametrize("retention", [0.0, 0.15, 0.25, 0.31])
def test_a_profile_gives_its_ratios(tmp_path: Path, retention: float) -> None:
    sampler = Sampler(num_steps=10, accelerator="cpu")
    profile = sampler.calibrate(GaussianMixtureFlow(), ["one", "two"], profiler=MagCacheProfiler())
    path = tmp_path / "mag.safetensors"
    profile.save(path)
    found = read_schedule(path, "magcache-profile", threshold=0.3, retention=retention)
    policy = MagCache(profile=profile, threshold=0.3, retention=retention)
    expected = {name: each.computed for name, each in policy.plans(10).items()}
    for document in (found, again("magcache", found, 10)):
        assert {n: each.computed for n, each in document.schedules.items()} == expected


@given(st.integers(1, 30), st.sets(st.integers(0, 29)))
def test_steps_without_ratios_get_such_that_compute_them(steps: int, chosen: set[int]) -> None:
    schedule = StepSchedule.of({step for step in chosen if step < steps}, steps)
    assert again("magcache", ScheduleDocument.of(schedule)).as_one("").computed == schedule.computed


def test_what_diffusers_takes_is_written_where_it_says_the_same() -> None:
    theirs = {
        "mag_ratios": [1.0, 0.9, 0.8, 0.7],
        "threshold": 0.2,
        "max_skip_steps": 1,
        "retention_ratio": 0.25,
        "num_inference_steps": 4,
    }
    document = parse("magcache", theirs)
    assert document.as_one("").computed == (0, 2, 3)
    assert load_format("magcache").settings(document, {})["MagCacheConfig"] == theirs
    own = parse("magcache", [1.0] * 8, branches=["cond", "uncond"])
    assert "MagCacheConfig" not in load_format("magcache").settings(own, {})


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        ([], {}, "ratios: 0 entries"),
        ([1.0, -1.0], {}, "positive numbers, got"),
        ([1.0, "x"], {}, "'x'"),
        ([1.0, 1.0, 1.0], {"branches": ["cond", "uncond"]}, "3 ratios cannot be dealt out"),
        ([1.0], {"first": "maybe"}, "first is 'maybe'"),
        ({"mag_ratios": [1.0], "calibrate": True}, {}, "unknown keys calibrate"),
        ({"mag_ratios": [1.0, 1.0], "num_inference_steps": "2"}, {}, "'2'"),
    ],
)
def test_ratios_that_are_none_are_refused(data: object, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ErtaError, match=said):
        parse("magcache", data, **options)


# ----------------------------------------------------------------------------------- paths
@pytest.mark.parametrize("model", sorted(read_tables()))
def test_released_paths_come_back_with_their_spans(model: str) -> None:
    rows = {
        str(calls): {"fresh": list(path.fresh), "spans": list(path.spans)}
        for calls, path in read_tables()[model].items()
    }
    for calls, row in rows.items():
        document = parse("meancache", rows, calls=int(calls))
        assert load_format("meancache").settings(document, {}) == row
        (policy,) = build_policies(load_format("policies").settings(document, {}))
        assert policy.plan(50).computed == tuple(row["fresh"])  # type: ignore[attr-defined]


def test_a_path_loses_its_spans_in_a_mask_and_says_so() -> None:
    document = parse("meancache", {"fresh": [0, 2, 3], "spans": [2, 0]})
    assert document.list_losses(load_format("mask").keeps) == ["spans of meancache"]
    assert document.list_losses(load_format("meancache").keeps) == []
    steps = parse("mask", json.loads(write_schedule(document, "mask")))
    assert load_format("meancache").settings(steps, {}) == {"fresh": [0, 2, 3], "spans": [1, 1]}


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        ({"fresh": [0, 2], "spans": [1, 1]}, {}, "1 in all"),
        ({"fresh": [0, 2], "spans": [-1]}, {}, "entry 0 is -1"),
        ({"fresh": [0, 2]}, {"calls": 2}, "calls is for a table"),
        ({"2": {"fresh": [0, 2]}}, {}, "a table of paths for 2 calls, calls is None"),
        ({"fresh": [1, 2]}, {}, "entry 0 is step 1"),
    ],
)
def test_paths_that_are_none_are_refused(data: object, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ErtaError, match=said):
        parse("meancache", data, **options)
    with pytest.raises(InputError, match="reuses its last step, 2"):
        write_schedule(parse("mask", [1, 1, 0]), "meancache")


# ------------------------------------------------------------------------------ components
def test_past_the_end_of_its_list_a_component_runs() -> None:
    document = parse("smoothcache", {"attn1": [1, 0], "ff": [1, 0, 0, 1]})
    assert document.schedules["attn1"].computed == (0, 2, 3)
    assert document.schedules["ff"].computed == (0, 3)
    longer = parse("smoothcache", {"attn1": [1, 0]}, 5)
    assert longer.as_one("").computed == (0, 2, 3, 4)
    assert again("smoothcache", document).schedules == document.schedules


def test_components_run_as_policies() -> None:
    lists = {"attn1": [1, 0, 1], "ff": [1, 1, 0]}
    document = parse("smoothcache", lists)
    (policy,) = build_policies(load_format("policies").settings(document, {}))
    assert {name: list(mask) for name, mask in policy.schedule.items()} == lists  # type: ignore[attr-defined]
    assert again("policies", document).schedules == document.schedules


def test_components_of_one_block_run_as_policies_each() -> None:
    document = parse("smoothcache", {"attn1-3": [1, 0, 1], "ff": [1, 1, 0]})
    written = load_format("policies").settings(document, {})
    sites = [each["at"]["sites"] for each in written]
    assert sites == [{"kind": ["attention"], "depth": "3"}, {"kind": ["mlp"]}]
    assert len(build_policies(written)) == 2


def test_one_list_serves_named_components() -> None:
    document = parse("steps", [0, 2], 3)
    text = write_schedule(document, "smoothcache", components=["attn1", "ff"])
    assert json.loads(text) == {"attn1": [1, 0, 1], "ff": [1, 0, 1]}
    assert parse("smoothcache", json.loads(text)).as_one("") == document.as_one("")


@pytest.mark.parametrize(
    ("data", "num_steps", "said"),
    [
        ({"attn1": [1, 0, 1]}, 2, "attn1 has 3 entries, --steps says 2"),
        ({"attn1": [0, 1]}, 2, "attn1, entry 0 is 0"),
        ({"attn1": [1, 2]}, 2, "attn1, entry 1 is 2"),
        ({"a\nb": [0]}, 2, r"a\\nb, entry 0"),
        ({}, 2, "0 components"),
    ],
)
def test_lists_that_are_none_are_refused(data: object, num_steps: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse("smoothcache", data, num_steps)


def test_what_a_format_cannot_say_is_refused() -> None:
    with pytest.raises(InputError, match="name them"):
        write_schedule(parse("mask", [1, 0]), "smoothcache")
    two = parse("smoothcache", {"attn1": [1, 0, 1], "ff": [1, 1, 0]})
    with pytest.raises(InputError, match=r"attn1 computes \[0, 2\], ff computes \[0, 1\]"):
        write_schedule(two, "steps")
    with pytest.raises(InputError, match="norm1"):
        write_schedule(parse("smoothcache", {"norm1-2": [1]}), "policies")
    with pytest.raises(InputError, match="measured and not converted"):
        write_schedule(two, "magcache-profile")


# -------------------------------------------------------------------------------- policies
@pytest.mark.parametrize("form", ["steps", "mask", "cache-dit", "magcache", "smoothcache"])
def test_a_plan_of_ours_goes_there_and_back(form: str) -> None:
    document = parse("policies", [{"fora": {"interval": 3}}], 8)
    options = {"components": ["attn1"]} if form == "smoothcache" else {}
    written = load_format(form).settings(document, options)
    ours = load_format("policies").settings(parse(form, written, 8), {})
    assert len(build_policies(ours)) == 1
    assert parse("policies", ours, 8).as_one("").computed == (0, 1, 4, 7)


def test_policies_that_decide_while_sampling_are_no_schedule() -> None:
    with pytest.raises(ErtaError, match="plans ahead"):
        parse("policies", ["easycache"], 8)
    with pytest.raises(ErtaError, match="no installed distribution provides"):
        parse("policies", [{"os.system": {}}], 8)
    with pytest.raises(ConfigError):
        parse("policies", [{"skip_policy": {"steps": "all"}}], 8)
