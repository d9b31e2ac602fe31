"""The studies of the settings of one method: their rows, and what the docs know of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from erta_bench.core import Row
from erta_bench.setting import PROFILE
from erta_bench.studies import (
    SETTINGS,
    STUDIES,
    MethodSettings,
    StudyRun,
    build_row,
    continue_evenly,
    run_study,
    spread_evenly,
)
from erta_framework.config import build_policy
from tables.data import STUDIES as SHOWN
from tables.data import command_study
from tables.markers import SECTIONS

EVERY = [(name, model) for name, settings in SETTINGS.items() for model in settings.models]


def test_every_row_of_a_model_is_made_of_policies_that_exist() -> None:
    rows = [row for name, model in EVERY for row in SETTINGS[name].list_rows(model).values()]
    # looking a name up takes its time, so each policy is built once
    specs = {str(spec): spec for row in rows for spec in row}
    for spec in specs.values():
        assert build_row([spec])


def test_a_row_with_a_profile_names_what_makes_it() -> None:
    for settings in SETTINGS.values():
        named = [row for row, specs in settings.rows.items() if PROFILE in str(specs)]
        assert set(named) == set(settings.profilers)
        for row in named:
            (policy,) = build_row(settings.rows[row])
            profiler = build_policy(settings.profilers[row], row)
            assert type(policy.calibrator()) is type(profiler)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_rows_of_a_method_have_names_of_their_own(name: str) -> None:
    settings = SETTINGS[name]
    assert not set(settings.rows) & set(settings.baselines)
    assert set(settings.own) <= set(settings.models)
    for own in settings.own.values():
        assert not set(own) & set(settings.baselines)


@pytest.mark.parametrize(("name", "model"), EVERY)
def test_a_page_shows_the_record_of_every_model(name: str, model: str) -> None:
    assert (name, model) in SHOWN
    file, command = command_study(name, model)
    assert file in SECTIONS[f"study:{name}"].files
    assert command == f"erta bench study {name} --model {model}"
    assert model in STUDIES[name].models


SMALL = MethodSettings(
    title="A test",
    models=("mixture",),
    rows={
        "every step": ("residual_profiler",),
        "planned": ({"skip_policy": {"profile": PROFILE, "calls": 3}},),
        "planned, few": ({"skip_policy": {"profile": PROFILE, "calls": 2}},),
    },
    own={
        "mixture": {"planned, few": ({"skip_policy": {"evenly": 2}},)},
        "shapes-wan": {"another model's": ("last_step",)},
    },
    baselines={"even": ({"skip_policy": {"evenly": 3}},)},
    profilers={"planned": "residual_profiler"},
)


def test_rows_of_a_model_stand_in_their_place_and_are_calibrated() -> None:
    bench = run_study(
        "small",
        SMALL.as_study(),
        model="mixture",
        samples=2,
        calibration=2,
        steps=6,
        seed=0,
        substeps=2,
    )
    assert [row["name"] for row in bench.rows] == ["every step", "planned", "planned, few", "even"]
    assert [row["calls"] for row in bench.rows] == [6, 3, 2, 3]
    assert bench.settings["calibration_samples"] == 2


def test_calls_that_run_some_samples_count_as_these() -> None:
    found: dict[str, float] = {}

    def measure(run: StudyRun) -> list[Row]:
        policies = build_row([{"easycache": {"threshold": 0.2}}])
        result, _ = run.setting.sample_held_out(run.setting.make_sampler(policies), 0)
        (trace,) = result.traces
        found["share"] = trace.network_samples / (len(result.samples) * 2 * run.steps)
        found["calls"] = trace.network_calls / (2 * run.steps)
        return [run.measure("a sample at a time", policies)]

    study = replace(SMALL.as_study(), run=measure)
    bench = run_study(
        "x", study, model="mixture", samples=6, calibration=1, steps=20, seed=0, substeps=2
    )
    assert found["share"] < found["calls"]
    assert bench.rows[0]["work"] == pytest.approx(found["share"])


def test_even_steps_have_the_number_that_they_name() -> None:
    rows = {**spread_evenly(25, 10), **continue_evenly(17)}
    assert list(rows) == ["even steps, 25 of 50", "even steps, 10 of 50", "line on 17 even steps"]
    for specs, calls in zip(rows.values(), (25, 10, 17), strict=True):
        assert build_row(specs)[0].plan(50).calls == calls  # type: ignore[attr-defined]


@pytest.mark.slow
def test_settings_do_the_work_that_they_name() -> None:
    bench = run_study(
        "spectrum",
        STUDIES["spectrum"],
        model="shapes-wan",
        samples=1,
        calibration=1,
        steps=50,
        seed=0,
        substeps=2,
    )
    found = {str(row["name"]): row for row in bench.rows}
    assert {row["calls"] for name, row in found.items() if "0.75" in name} == {14}
    assert found["25 calls"]["work"] == found["line on 25 even steps"]["work"] == 0.5
    stack = found["half the work, block stack"]
    assert stack["calls"] == 50
    assert 0.4 < float(str(stack["work"])) <= 0.5
    for row in bench.rows:
        assert row["psnr_fine_worst"] == pytest.approx(row["psnr_fine_mean"])  # one sample
