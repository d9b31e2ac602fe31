"""`erta bench peers`: kinds of rows, who leads, plain steps on given sigmas, and the page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")

from erta_bench.cli import app
from erta_bench.comparison import (
    GOALS,
    KINDS,
    Runner,
    compare_peers,
    find_leaders,
    is_comparable,
    join_records,
    list_peers,
)
from erta_bench.comparison._contender import mix, plain
from erta_bench.comparison._fixed_sigmas import make_scheduler
from erta_bench.comparison._peers import GRIDS, ORACLE, OURS
from erta_bench.comparison._preparation import Preparation
from erta_bench.comparison.contenders import SCHEDULE
from erta_bench.comparison.peers_page import make_lead_row, write_peers_page
from erta_bench.setting import Setting
from erta_bench.shapes_image import load_flux
from erta_framework.errors import InputError
from erta_integrations.diffusers.bundled import pipeline, request, samples_of
from erta_integrations.shapes_wan import ShapesWan, load

STEPS, CALLS = 10, 5


# ------------------------------------------------------------------------- the rows
def test_every_row_is_of_one_kind() -> None:
    rows = list_peers()
    kinds = {row.name: row.kind for row in rows}
    assert len(kinds) == len(rows)
    assert set(kinds.values()) == set(KINDS)
    assert {name for name, kind in kinds.items() if kind == "ours"} == set(OURS)
    assert all(kinds[row.name] == "peer" for row in rows if row.rival)
    assert kinds["ERTACache"] == kinds["MeanCache A"] == "peer"
    assert kinds["ERTACache steps + line"] == kinds["uniform reuse"] == "composed"
    assert kinds["plain Heun"] == "plain"
    on = [row for row in rows if row.on is not None]
    assert {row.kind for row in on} == {"composed"}
    assert len(on) == 3 * len(GRIDS)


@pytest.mark.parametrize(("budget", "steps"), [(25, 13), (17, 9), (12, 6), (8, 4)])
def test_two_calls_a_step_are_never_more_than_asked_for(budget: int, steps: int) -> None:
    found = plain("plain Heun", "heun", order=2).steps(budget, 50)
    assert found == steps
    assert budget - 1 <= 2 * found - 1 <= budget


# ------------------------------------------------------------------------- who leads
def row(kind: str, psnr: float | None, **facts: Any) -> dict[str, Any]:
    """A row of the benchmark at 25 of 50 calls."""
    own = {"name": kind, "kind": kind, "budget": 25, "calls": 25, "equal": "calls", "work": 0.5}
    spread = {"psnr_std": 2.0, "ssim_mean": 0.9, "status": "measured"}
    return {**own, **spread, "psnr_mean": psnr, **facts}


FULL = {"name": "full", "kind": "full", "budget": None, "steps": 50, "prompts": 4, "seeds": 1}


def test_the_best_of_each_kind_leads() -> None:
    rows = [
        FULL,
        row("ours", 50.0, processor_efficiency=0.99),
        row("ours", 45.0),
        row("peer", 44.5),
        row("peer", 60.0, calls=27),  # computed more than it should
        row("peer", None, status="refused"),
        row("plain", 40.0),
        row("composed", 51.0),
    ]
    (leaders,) = find_leaders(rows)
    assert leaders.lead("peer") == pytest.approx(5.5)
    assert leaders.lead("plain") == pytest.approx(10.0)
    assert leaders.lead("composed") == pytest.approx(-1.0)
    assert leaders.lead("oracle") is None
    assert (leaders.goal, leaders.reached) == (GOALS[25], False)
    rows[3]["psnr_mean"] = 44.0
    (leaders,) = find_leaders(rows)
    assert leaders.reached is True
    assert make_lead_row(leaders)["reached"] == "yes"
    assert make_lead_row(leaders)["efficiency"] == 0.99


def test_a_cache_of_parts_counts_by_its_work() -> None:
    parts = row("peer", 48.0, calls=50, equal="work", work=0.51)
    assert is_comparable(parts, 50)
    assert not is_comparable({**parts, "work": 0.6}, 50)
    assert not is_comparable({**parts, "equal": "calls"}, 50)


# ------------------------------------------------------------------------- given sigmas
def test_all_sigmas_of_the_grid_are_the_plain_pipeline() -> None:
    """Passing a scheduler its own sigmas changes nothing."""
    model = load()
    _, prompts = model.demo_prompts()
    asked = request(model, prompts[:1], seeds=[3], num_steps=4)
    full = pipeline(model)
    expected = samples_of(model, full(**asked))
    given = pipeline(model)
    given.scheduler = make_scheduler("euler", full.scheduler.sigmas.tolist()[:-1])
    asked = request(model, prompts[:1], seeds=[3], num_steps=50)  # the sigmas decide
    assert torch.equal(samples_of(model, given(**asked)), expected)


def test_a_pipeline_that_hands_over_its_own_sigmas_keeps_the_given_ones() -> None:
    model = load_flux()
    _, prompts = model.demo_prompts()
    pipe = pipeline(model)
    pipe.scheduler = make_scheduler("unipc", [1.0, 0.6, 0.2])
    calls = []
    pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    pipe(**request(model, prompts[:1], seeds=[3], num_steps=50))
    assert len(calls) == 2 * 3  # both branches
    sigmas = [round(sigma, 4) for sigma in pipe.scheduler.sigmas.tolist()]
    assert sigmas == [1.0, 0.6, 0.2, 0.0]


def test_an_unknown_solver_is_refused() -> None:
    with pytest.raises(InputError, match="solver 'heun' takes no sigmas"):
        make_scheduler("heun", [1.0])


# ------------------------------------------------------------------------- a run
@pytest.fixture(scope="module")
def model() -> ShapesWan:
    """The trained model, cut to two blocks for speed."""
    model = load()
    model.transformer.blocks = model.transformer.blocks[:2]
    return model


@pytest.fixture(scope="module")
def record(model: ShapesWan) -> Mapping[str, Any]:
    few, held_out = model.demo_prompts()
    setting = Setting(
        model=model, calibration=few[:4], held_out=held_out[:3], steps=STEPS, batch_size=2
    )
    rows = [
        "plain Heun",
        "MeanCache A",
        ORACLE.name,
        *OURS,
        "uniform reuse",
        "plain Euler on ERTACache's steps",
        "plain AB2 on the multistep plan's steps",
        "plain UniPC on the multistep plan's steps",
    ]
    found = compare_peers(setting, calls=[CALLS], seeds=2, rows=rows, command="x")
    record: Mapping[str, Any] = json.loads(json.dumps(found.record(), allow_nan=False))
    return record


@pytest.mark.slow
def test_rows_of_every_kind_are_measured(record: Mapping[str, Any]) -> None:
    rows = {row["name"]: row for row in record["rows"]}
    assert [row for row in rows.values() if row["status"] != "measured"] == []
    assert {row["calls"] for row in rows.values()} == {CALLS, STEPS}
    for name, found in rows.items():
        assert 0 <= found["right"] <= min(found["right_color"], found["right_shape"]), name
    oracle = rows[ORACLE.name]
    assert oracle["prompts"] == 2  # the first batch of each seed set
    assert oracle["speedup"] is None is oracle["processor_efficiency"]
    assert oracle["work"] == pytest.approx(CALLS / STEPS)
    # velocity reuse is Euler on the computed sigmas, and residual reuse is not
    assert rows["plain Euler on ERTACache's steps"]["psnr_mean"] != pytest.approx(
        rows["uniform reuse"]["psnr_mean"], abs=0.01
    )


@pytest.mark.slow
def test_plain_euler_on_the_computed_sigmas_is_reuse_of_the_velocity(model: ShapesWan) -> None:
    """The row that tells schedule and predictor apart: the same samples, with nothing cached."""
    few, held_out = model.demo_prompts()
    runner = Runner(model, steps=STEPS, scheduler="flow_euler")
    preparation = Preparation(runner, few[:2])
    rows = {row.name: row for row in list_peers()}
    on = preparation.prepare(rows["plain Euler on ERTACache's steps"], CALLS)
    held = mix("held", SCHEDULE, {"forecaster": {"basis": "newton", "order": 0}})
    cached = preparation.prepare(held, CALLS)
    plain_run, reused = (runner.run(prepared, held_out[:1], 5) for prepared in (on, cached))
    assert plain_run.calls == reused.calls == CALLS == len(on.sigmas)
    # the same sums, added up in another order
    assert torch.allclose(plain_run.samples.samples, reused.samples.samples, atol=1e-4)


@pytest.mark.slow
def test_the_page_and_joining(record: Mapping[str, Any], tmp_path: Path) -> None:
    page = write_peers_page(record, tmp_path).read_text(encoding="utf-8")
    assert "Everyone on shapes-wan, 5 of 10 network calls" in page
    assert "unmodified WanPipeline" in page
    for name in (*OURS, "plain Heun"):
        assert name in page
    assert (tmp_path / "peers.png").stat().st_size > 10_000
    assert 'src="http' not in page
    rest = [{**row, "budget": 4} if row["budget"] else row for row in record["rows"]]
    both = join_records([record, {**record, "rows": rest}])
    assert [leaders.budget for leaders in find_leaders(both["rows"])] == [5, 4]
    with pytest.raises(InputError, match=r"share the numbers of calls \[5\]"):
        join_records([record, record])
    with pytest.raises(InputError, match="rows without a kind"):
        join_records([{**record, "rows": [{"name": "full"}]}])
    with pytest.raises(InputError, match="differ in their settings"):
        join_records([record, {**record, "settings": {}}])


@pytest.mark.slow
def test_command(tmp_path: Path) -> None:
    target = tmp_path / "peers.json"
    asked = ["--samples", "2", "--seeds", "1", "--steps", "6", "--calls", "3", "--calibration", "2"]
    asked += ["--row", "plain Heun", "--row", "planned steps, reuse", "--json", str(target)]
    done = CliRunner().invoke(app, ["peers", "--model", "shapes-flux", *asked])
    assert done.exit_code == 0, done.output
    record = json.loads(target.read_text(encoding="utf-8"))
    # FluxPipeline has no Heun
    assert [row["name"] for row in record["rows"]] == ["full", "planned steps, reuse"]
    with pytest.raises(InputError, match="--from joins records into nothing"):
        CliRunner().invoke(app, ["peers", "--from", str(target)], catch_exceptions=False)
    again = ["peers", "--from", str(target), "--report", str(tmp_path / "page")]
    assert CliRunner().invoke(app, again).exit_code == 0
    assert (tmp_path / "page" / "report.html").is_file()
