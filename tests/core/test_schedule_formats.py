"""Schedule files of plain steps: there and back again, and what is refused, with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erta_framework.budgets import StepSchedule
from erta_framework.budgets.formats import (
    ScheduleDocument,
    ScheduleFormat,
    as_mask,
    expand_run_lengths,
    list_formats,
    load_format,
    read_schedule,
    to_run_lengths,
    write_schedule,
)
from erta_framework.errors import ConfigError, ErtaError, InputError

PLAIN = ("steps", "mask", "cache-dit", "cache-dit-config", "sglang")
LEMICA_14 = [0, 1, 2, 3, 4, 5, 7, 10, 16, 23, 30, 37, 44, 49]


@st.composite
def schedules(draw: st.DrawFn) -> StepSchedule:
    steps = draw(st.integers(1, 60))
    return StepSchedule.of(draw(st.sets(st.integers(0, steps - 1))), steps)


def parse(form: str, data: Any, num_steps: int | None = None, **options: Any) -> ScheduleDocument:
    return load_format(form).parse(data, "given.json", num_steps, options)


def save(folder: Path, text: str | bytes) -> Path:
    path = folder / "given.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@given(schedules(), st.sampled_from(PLAIN))
def test_every_schedule_comes_back_as_it_was(schedule: StepSchedule, form: str) -> None:
    if form == "sglang" and schedule.calls == schedule.num_steps:
        return  # refused, below
    written = load_format(form).settings(ScheduleDocument.of(schedule), {})
    again = parse(form, json.loads(json.dumps(written)), schedule.num_steps)
    assert again.as_one(form) == schedule


@given(schedules(), st.data())
def test_files_of_two_formats_say_the_same(schedule: StepSchedule, data: st.DataObject) -> None:
    first, second = (data.draw(st.sampled_from(PLAIN[:4])) for _ in range(2))
    steps = schedule.num_steps
    once = parse(first, load_format(first).settings(ScheduleDocument.of(schedule), {}), steps)
    twice = parse(second, load_format(second).settings(once, {}), steps)
    assert twice.as_one(second) == schedule


@given(schedules())
def test_run_lengths_cover_the_mask(schedule: StepSchedule) -> None:
    mask = as_mask(schedule)
    compute, cache = to_run_lengths(mask)
    assert sum(compute) == schedule.calls
    assert sum(compute) + sum(cache) == schedule.num_steps
    assert min([*compute, *cache]) >= 1
    assert len(compute) - len(cache) in (0, 1)
    assert list(expand_run_lengths(compute, cache)) == mask


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=6),
    st.lists(st.integers(1, 5), max_size=6),
    st.integers(1, 40),
)
def test_run_lengths_are_those_of_cache_dit(
    compute: list[int], cache: list[int], steps: int
) -> None:
    steps_mask = pytest.importorskip("cache_dit").steps_mask
    total = min(steps, sum(compute) + sum(cache))
    ours = expand_run_lengths(compute, cache, total)
    assert list(ours) == steps_mask(compute_bins=compute, cache_bins=cache, total_steps=total)


@pytest.mark.parametrize("preset", ["slow", "medium", "fast", "ultra"])
@pytest.mark.parametrize("steps", [8, 20, 28, 50])
def test_presets_of_cache_dit_are_read_and_written(preset: str, steps: int) -> None:
    steps_mask = pytest.importorskip("cache_dit").steps_mask
    mask = steps_mask(total_steps=steps, mask_policy=preset)
    written = load_format("cache-dit").settings(parse("mask", mask), {})
    bins = written["steps_mask"]
    assert steps_mask(**bins) == mask
    assert parse("cache-dit", bins).as_one("a mask") == parse("mask", mask).as_one("a mask")


def test_a_published_list_has_the_published_run_lengths() -> None:
    text = write_schedule(parse("steps", LEMICA_14, 50), "sglang")
    assert text.splitlines() == [
        "SGLANG_CACHE_DIT_SCM_COMPUTE_BINS=6,1,1,1,1,1,1,1,1",
        "SGLANG_CACHE_DIT_SCM_CACHE_BINS=1,2,5,6,6,6,6,4",
        "SGLANG_CACHE_DIT_SCM_POLICY=static",
        "SGLANG_CACHE_DIT_ENABLED=true",
    ]
    shell = write_schedule(parse("steps", LEMICA_14, 50), "sglang", export=True)
    assert shell.splitlines() == [f"export {line}" for line in text.splitlines()]


def test_an_environment_file_is_read_as_shells_write_it(tmp_path: Path) -> None:
    lines = [
        "# a comment",
        "export SGLANG_CACHE_DIT_SCM_COMPUTE_BINS='2, 1'",
        "",
        'SGLANG_CACHE_DIT_SCM_CACHE_BINS="3"',
        "SGLANG_CACHE_DIT_SCM_POLICY=static",
    ]
    found = read_schedule(save(tmp_path, "\n".join(lines)), "sglang")
    assert found.as_one("").computed == (0, 1, 5)


@pytest.mark.parametrize("style", ["json", "yaml"])
def test_a_configuration_file_comes_back_in_either_style(tmp_path: Path, style: str) -> None:
    given = parse("steps", LEMICA_14, 50)
    text = write_schedule(given, "cache-dit-config", style=style, first_blocks=2)
    assert ("{" in text) == (style == "json")
    assert "Fn_compute_blocks: 2" in text.replace('"', "")
    assert read_schedule(save(tmp_path, text), "cache-dit-config").as_one("") == given.as_one("")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cache_config: &a {x: *a}", "aliases"),
        ("cache_config: [1", "no YAML"),
        ("[" * 5000, "no YAML"),
        ("cache_config: 2024-99-99", "no YAML"),
        ("steps: [0]", "unknown keys steps"),
        ("{}", "has no cache_config"),
        ("cache_config: {steps_computation_mask: [1, 0]}", "'dynamic'"),
        ("cache_config: {cache_type: DBPrune}", "'DBPrune'"),
    ],
)
def test_a_configuration_file_of_something_else_is_refused(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        read_schedule(save(tmp_path, text), "cache-dit-config")


def test_cache_dit_cuts_runs_off_at_the_last_step() -> None:
    runs = {"compute_bins": [2, 9], "cache_bins": [3]}
    assert parse("cache-dit", runs, 7).as_one("").computed == (0, 1, 5, 6)
    assert parse("cache-dit", runs).num_steps == 14


BINS = {"compute_bins": [2, 1], "cache_bins": [3]}
MASK = {"steps_computation_mask": [1, 0, 1]}
PAIR = {
    "SGLANG_CACHE_DIT_SCM_COMPUTE_BINS": "2,1",
    "SGLANG_CACHE_DIT_SCM_CACHE_BINS": "3",
    "SGLANG_CACHE_DIT_SCM_POLICY": "static",
}
OFF = {**PAIR, "SGLANG_CACHE_DIT_ENABLED": "false"}


@pytest.mark.parametrize(
    ("form", "data", "num_steps", "said"),
    [
        ("steps", [0, 3], None, r"given.json does not say how many steps.*--steps N"),
        ("steps", [0, 3, 3], 9, "entry 2 is step 3 after step 3"),
        ("steps", [2, 3], 9, "entry 0 is step 2; computed steps rise from 0"),
        ("steps", [0, 9], 9, "entry 1 is 9; it must be a whole number, 0 to 8"),
        ("steps", [], 9, "at least step 0"),
        ("steps", [0, 1.5], 9, "1.5"),
        ("steps", [0, True], 9, "True"),
        ("steps", "0,1", 9, "'0,1'"),
        ("steps", {"steps": [0], "code": 1}, 9, "unknown keys code"),
        ("steps", {"steps": [0, 1], "computed": [0]}, 9, r"computed is \[0\], but .* \[0, 1\]"),
        ("steps", {"steps": [0, 1], "num_steps": 4}, 9, "of 4 steps, --steps says 9"),
        ("steps", [0], 10**9, "a schedule has 1 to 10000"),
        ("mask", [0, 1], None, "entry 0 is 0: there is nothing to reuse"),
        ("mask", [], None, "entry 0 is missing"),
        ("mask", [1, 2], None, "entry 1 is 2; it must be a whole number, 0 to 1"),
        ("mask", [1, 0], 3, "of 2 steps, --steps says 3"),
        ("mask", [1] * 10_001, None, "10001 entries"),
        ("cache-dit", [1, 0], None, "is an object"),
        ("sglang", OFF, None, "is 'false', so that SGLang reads none"),
        ("cache-dit", {**BINS, "total_steps": 9}, None, "6 steps together, the schedule has 9"),
        ("cache-dit", {**BINS, "total_steps": 5}, 4, "of 5 steps, --steps says 4"),
        ("cache-dit", {"compute_bins": [2]}, None, "no cache_bins"),
        ("cache-dit", {"compute_bins": [0], "cache_bins": [3]}, None, "compute_bins, entry 0 is 0"),
        ("cache-dit", {"compute_bins": [], "cache_bins": [3]}, None, "compute_bins is empty"),
        ("cache-dit", {"compute_bins": [10**9], "cache_bins": [3]}, 5, "1000000003 steps"),
        ("cache-dit", {**MASK, "steps_computation_policy": "dynamic"}, None, "'dynamic'"),
        ("cache-dit", {**MASK, "num_inference_steps": 4}, None, "is 4, the mask has 3"),
        ("cache-dit", {"Fn_compute_blocks": 1}, None, "unknown keys Fn_compute_blocks"),
        ("cache-dit", {"DBCacheConfig": MASK, "steps_mask": BINS}, None, "remove the one"),
        ("sglang", {**PAIR, "SGLANG_CACHE_DIT_SCM_CACHE_BINS": ""}, None, "needs both lists"),
        ("sglang", {**PAIR, "SGLANG_CACHE_DIT_SCM_POLICY": "dynamic"}, None, "'dynamic'"),
        (
            "sglang",
            {**PAIR, "SGLANG_CACHE_DIT_SCM_CACHE_BINS": "3,x"},
            None,
            "CACHE_BINS, entry 1 is 'x'",
        ),
        ("sglang", {**PAIR, "PATH": "3"}, None, "unknown keys PATH"),
    ],
)
def test_a_refusal_names_file_place_and_value(
    form: str, data: object, num_steps: int | None, said: str
) -> None:
    with pytest.raises((InputError, ConfigError), match=said) as caught:
        parse(form, data, num_steps)
    assert "given.json" in str(caught.value)


def test_sglang_would_ignore_a_schedule_that_computes_every_step() -> None:
    with pytest.raises(InputError, match="all of its 3 steps"):
        write_schedule(parse("mask", [1, 1, 1]), "sglang")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\xff[0]", r"no UTF-8 text \(byte 0\)"),
        ("[0, 1", "no JSON"),
        ('{"steps": [0], "steps": [1]}', "a key of its JSON is there twice"),
        ("[" * 50 + "]" * 50, "nested 50 deep"),
        (" " * (1 << 20) + "[0]", "more than 1048576 bytes"),
        ('"\x1b[31m"', "no JSON"),
    ],
)
def test_files_are_read_with_distrust(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read_schedule(save(tmp_path, text), "steps", 5)
    assert "given.json" in str(caught.value)


def test_text_of_a_file_is_escaped_in_messages(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_schedule(save(tmp_path, json.dumps({"steps": [0], "\x1b[2J": 1})), "steps", 5)
    assert "\x1b" not in str(caught.value)
    with pytest.raises(InputError, match="cannot read the schedule file"):
        read_schedule(tmp_path / "missing.json", "steps", 5)


def test_branches_with_other_steps_have_no_one_list() -> None:
    branches = {"cond": StepSchedule.of({2}, 4), "uncond": StepSchedule.of({3}, 4)}
    document = ScheduleDocument(branches, "branches")
    with pytest.raises(InputError, match=r"cond computes \[0, 2\], uncond computes \[0, 3\]"):
        write_schedule(document, "mask")
    with pytest.raises(InputError, match="cond has 4, uncond has 5"):
        ScheduleDocument({"cond": branches["cond"], "uncond": StepSchedule.of((), 5)}, "branches")


def test_settings_of_a_format_are_known() -> None:
    with pytest.raises(ConfigError, match="threshold is no setting to write it with"):
        write_schedule(parse("mask", [1, 0]), "steps", threshold=1)
    with pytest.raises(InputError, match="no format of schedules 'stepz'"):
        load_format("stepz")


@pytest.mark.parametrize("name", sorted(list_formats()))
def test_no_format_raises_anything_but_refusals(name: str) -> None:
    form: ScheduleFormat = load_format(name)
    assert form.title[0].islower() or form.title.startswith(("MagCache", "MeanCache", "S"))
    wild: list[Any] = [None, 1, "x", [], {}, [[]], {"a": {}}, {"a": [1, None]}, [{"a": 1}], [None]]
    for data in wild:
        with pytest.raises(ErtaError):
            form.parse(data, "given.json", 5, {})
