"""`erta bench budgets` and `erta bench lambda` on a toy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torchmetrics")

from erta_bench.budgets import compare_schedules, vary_lambda
from erta_bench.budgets._candidates import COMPARED, REFINED
from erta_bench.setting import Setting
from erta_framework.errors import InputError
from erta_framework.testing import AffineFlow

STEPS = 8


def setting() -> Setting:
    return Setting(
        model=AffineFlow((3, 2, 12, 12)),
        calibration=["a", "b"],
        held_out=["c", "d", "e"],
        steps=STEPS,
        batch_size=2,
        accelerator="cpu",
        substeps=2,
    )


def test_every_schedule_is_measured_at_its_calls(tmp_path: Path, seeming_gpu: None) -> None:
    written = []
    bench = compare_schedules(
        setting(),
        calls=[5, 3],
        trials=2,
        refine_samples=1,
        command="erta bench budgets",
        keep=lambda so_far: written.append(so_far.command),
    )
    assert written == ["erta bench budgets --calls 5", "erta bench budgets --calls 5 --calls 3"]
    full, *rows = bench.rows
    assert (full["name"], full["calls"], full["psnr_mean"]) == ("full", STEPS, None)
    expected = sum(map(len, COMPARED.values())) + len(REFINED)
    for budget in (5, 3):
        found = [row for row in rows if row["budget"] == budget]
        assert len(found) == expected
        assert {row["calls"] for row in found} == {budget}
        assert all(len(str(row["steps"]).split()) == budget for row in found)
    assert all(row["predicted"] > 0 for row in rows if "refined" not in str(row["name"]))
    # the full run, and every plan with its trials
    assert bench.settings["refine_calls"] <= STEPS + len(REFINED) * 3 * (5 + 3)
    same = [row for row in rows if row["same_as"] is not None]
    for row in same:
        (other,) = (
            r
            for r in rows
            if (r["name"], r["stands_in"], r["budget"])
            == (row["same_as"], row["stands_in"], row["budget"])
        )
        assert (row["psnr_mean"], row["steps"]) == (other["psnr_mean"], other["steps"])
    record = json.loads(bench.write(tmp_path / "b.json").read_text(encoding="utf-8"))
    assert len(record["rows"]) == 1 + 2 * expected


def test_lambda_is_moved_by_a_fifth(seeming_gpu: None) -> None:
    bench = vary_lambda(setting(), calls=[4])
    _, less, solved, more = bench.rows
    assert solved["calls"] == 4
    assert less["threshold"] == pytest.approx(0.8 * solved["threshold"])
    assert more["threshold"] == pytest.approx(1.2 * solved["threshold"])
    assert less["calls"] >= solved["calls"] >= more["calls"]


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(InputError, match="give numbers from 2 to the 8 steps"):
        compare_schedules(setting(), calls=[9])
    with pytest.raises(InputError, match="give numbers from 2 to the 8 steps"):
        vary_lambda(setting(), calls=[])
