"""`erta bench study`: what a study is given, and the study of plans."""

from __future__ import annotations

from pathlib import Path

import pytest

from erta_bench.cli import study_command
from erta_bench.core import Bench, Row
from erta_bench.studies import STUDIES, Study, StudyRun, run_study
from erta_framework.errors import InputError
from erta_policies.ertacache import ResidualProfiler, SkipPolicy


def measure_half(run: StudyRun) -> list[Row]:
    profile = run.calibrate(ResidualProfiler())
    calls = run.steps // 2
    return [
        run.measure("nothing", []),
        run.measure("half", [SkipPolicy(profile=profile, calls=calls)], calls=calls),
    ]


HALF = Study(title="A test", run=measure_half, models=("mixture",), columns={"name": ""})


def run_half(model: str = "mixture") -> Bench:
    return run_study(
        "half", HALF, model=model, samples=3, calibration=2, steps=6, seed=1, accelerator="cpu"
    )


def test_a_study_measures_against_the_full_run_and_says_what_was_run(seeming_gpu: None) -> None:
    bench = run_half()
    nothing, half = bench.rows
    assert nothing["psnr_mean"] is None  # equal to the full run
    for key in ("psnr_fine_mean", "psnr_fine_std", "psnr_fine_worst"):  # it is the full run
        assert nothing[key] == bench.settings[f"full_run.{key}"]
        assert nothing[key] != half[key]
    assert (nothing["work"], half["work"]) == (1.0, 0.5)
    assert half["prompts"] == 3
    assert bench.settings["calibration_samples"] == 2
    assert bench.command == (
        "erta bench study half --model mixture --samples 3 --calibration 2 --steps 6 --substeps 4 "
        "--seed 1 --device cpu"
    )


def test_a_study_refuses_other_models_and_other_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not run on 'shapes-wan'; give --model mixture"):
        run_half("shapes-wan")
    with pytest.raises(InputError, match="no study 'plan'; did you mean 'plans'"):
        study_command("plan", json=tmp_path / "x.json")


@pytest.mark.slow
def test_the_study_of_plans_has_them_at_equal_work() -> None:
    bench = run_study(
        "plans",
        STUDIES["plans"],
        model="shapes-flux",
        samples=1,
        calibration=1,
        steps=9,
        seed=0,
        substeps=2,
    )
    plain = [row for row in bench.rows if not row["refreshed"]]
    assert [row["name"] for row in plain[:3]] == ["long gaps first", "even", "long gaps last"]
    assert len({round(float(row["work"] or 0.0), 9) for row in plain}) == 1
    refreshed = [row for row in bench.rows if row["refreshed"]]
    assert all(row["work"] > plain[0]["work"] for row in refreshed)
    assert len(bench.rows) == 10
