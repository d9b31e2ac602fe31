"""`erta bench fitted`: the parts of the study on an analytic flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from erta_bench.fitted import Study, run_study
from erta_bench.setting import open_study_model, repeat_prompts
from erta_framework.errors import InputError


@pytest.fixture(scope="module")
def study() -> Callable[..., list[dict[str, Any]]]:
    opened = open_study_model("mixture")

    def run(part: str) -> list[dict[str, Any]]:
        found = Study(
            model=opened.model,
            calibration=opened.calibration,
            held_out=opened.held_out,
            measured=3,
            samples=4,
            steps=8,
            accelerator="cpu",
            substeps=2,
        )
        return [dict(row) for row in run_study(found, [part], [5], 4, "a test").rows]

    return run


def test_the_study_measures_each_row(
    study: Callable[..., list[dict[str, Any]]], seeming_gpu: None
) -> None:
    rows = study("calls")
    assert [row["kind"] for row in rows] == ["full", "plain", "plain", "peer", "composed", "ours"]
    assert {row["calls"] for row in rows[1:]} == {5}
    assert (rows[0]["calls"], rows[0]["psnr_mean"]) == (8, None)
    assert all(row["psnr_fine_worst"] <= row["psnr_fine_mean"] for row in rows)
    assert len({row["psnr_fine_mean"] for row in rows}) == len(rows)
    assert {row["samples"] for row in rows} == {3}
    assert rows[-1]["gain_mean"] == pytest.approx(rows[-1]["psnr_mean"] - rows[-2]["psnr_mean"])


def test_the_study_fits_on_other_schedules_and_under_other_solvers(
    study: Callable[..., list[dict[str, Any]]],
) -> None:
    rows = study("schedules")
    assert [row["kind"] for row in rows] == ["full", *["composed", "ours"] * 5]
    assert {row["calls"] for row in rows[1:]} == {5}
    rows = study("solvers")
    assert [row["where"] for row in rows[3::4]] == [
        "20 steps, Euler",
        "30 steps, Euler",
        "8 steps, Adams-Bashforth 2",
    ]
    assert [row["calls"] for row in rows[3::4]] == [10, 15, 4]


def test_the_study_measures_what_was_not_seen(
    study: Callable[..., list[dict[str, Any]]],
) -> None:
    rows = study("robust")
    assert [row["kind"] for row in rows] == ["full", "peer", "composed", "ours"] * 4
    assert {row["budget"] for row in rows if row["kind"] != "full"} == {4}
    with pytest.raises(InputError, match="unknown part"):
        study("everything")
    assert repeat_prompts(["a", "b"], 3) == ["a", "b", "a"]
