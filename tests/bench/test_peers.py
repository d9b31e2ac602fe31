"""`erta bench peers`: kinds of rows, who leads, plain steps on given sigmas, and the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")

from erta_bench.cli import app
from erta_bench.comparison import (
    KINDS,
    TO_FULL,
    Runner,
    choose_peers,
    compare_peers,
    find_leaders,
    is_comparable,
    join_records,
    judge_goals,
    list_peers,
    list_unclear,
)
from erta_bench.comparison._contender import mix, plain
from erta_bench.comparison._fixed_sigmas import list_grid, make_scheduler
from erta_bench.comparison._peers import GRIDS, ORACLE, OURS
from erta_bench.comparison._preparation import Preparation
from erta_bench.comparison._seed_sets import Comparison
from erta_bench.comparison.contenders import SCHEDULE
from erta_bench.comparison.peers_page import make_lead_row, write_peers_page
from erta_bench.setting import CALIBRATION_SEEDS, SEEDS_APART, Setting
from erta_bench.shapes_image import load_flux, load_unet
from erta_framework.calibration import Solution
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
def row(kind: str, exact: float | None, worst: float = 30.0, **facts: Any) -> dict[str, Any]:
    """A row of the benchmark at 25 of 50 calls."""
    own = {"name": kind, "kind": kind, "budget": 25, "calls": 25, "equal": "calls", "work": 0.5}
    far = {"psnr_mean": 40.0, "psnr_std": 2.0, "psnr_worst": 35.0, "ssim_mean": 0.9}
    near = {"psnr_fine_mean": exact, "psnr_fine_std": 1.0, "psnr_fine_worst": worst}
    return {**own, **far, **near, "status": "measured", **facts}


FULL = {"name": "full", "kind": "full", "budget": None, "steps": 50, "prompts": 4, "seeds": 1}
FULL |= {"psnr_fine_mean": 37.0, "status": "measured"}


def test_the_best_of_each_kind_leads_on_either_axis() -> None:
    rows = [
        FULL,
        row("ours", 42.0, 38.0, processor_efficiency=0.99),
        row("ours", 41.0, 39.0, psnr_mean=60.0),
        row("peer", 39.5, 31.0),
        row("peer", 38.0, 36.0, name="steady"),
        row("peer", 60.0, 55.0, calls=27),  # computed more than it should
        row("peer", None, psnr_mean=None, status="refused"),
        row("plain", 40.0),
        row("composed", 43.0),
    ]
    (leaders,) = find_leaders(rows)
    assert leaders.lead("peer") == pytest.approx(2.5)
    assert leaders.lead_worst("peer") == pytest.approx(2.0)  # the steadier of the peers counts
    assert leaders.lead("plain") == pytest.approx(2.0)
    assert leaders.lead("composed") == pytest.approx(-1.0)
    assert leaders.lead("oracle") is None is leaders.lead_worst("oracle")
    shown = make_lead_row(leaders, {"rows": rows})
    assert (shown["over_full"], shown["efficiency"]) == (5.0, 0.99)
    (leaders,) = find_leaders(rows, TO_FULL)
    assert leaders.lead("peer") == pytest.approx(20.0)
    assert leaders.best["ours"]["psnr_fine_mean"] == 41.0


def make_goal_record(gain: float, **ours: Any) -> dict[str, Any]:
    """A record in which ours is so much nearer to the exact solution than the full run."""
    rows: list[dict[str, Any]] = [{**FULL, "processor_seconds": 50.0}]
    for budget in (17, 12, 8):
        at = {"budget": budget, "calls": budget, "work": budget / 50}
        own = {"calibration_calls": 50 * 16 * 20, "processor_efficiency": 0.99, **ours}
        rows.append({**row("ours", 37.0 + gain, 36.0), **at, "psnr_mean": 55.0, **own})
        rows += [row(kind, 35.0, 33.0, **at) for kind in ("peer", "plain", "composed")]
    return {"rows": rows, "settings": {"calibration_prompts": 16, "batch_size": 4}}


@pytest.mark.parametrize(
    ("record", "reached"),
    [
        (make_goal_record(3.0), [True] * 4),
        (make_goal_record(1.0), [False, True, True, True]),
        (make_goal_record(3.0, psnr_fine_worst=35.5), [True, False, True, True]),
        (make_goal_record(3.0, psnr_mean=49.0), [True, True, False, True]),
        (make_goal_record(3.0, calibration_calls=50 * 16 * 41), [True, True, True, False]),
        (make_goal_record(3.0, processor_efficiency=0.97), [True, True, True, False]),
        (make_goal_record(3.0, psnr_fine_worst=None), [True, None, True, True]),
        (make_goal_record(3.0, budget=25), [None] * 4),
    ],
)
def test_goals_are_judged_by_numbers(record: dict[str, Any], reached: list[bool | None]) -> None:
    found = judge_goals(record)
    assert [goal.reached for goal in found] == reached
    assert [goal.number for goal in found] == [1, 2, 3, 4]


def test_a_learned_solver_is_a_peer_and_no_cache() -> None:
    record = make_goal_record(3.0)
    trained = row("peer", 44.0, group="plain", psnr_mean=54.0, budget=12, calls=12, work=0.24)
    record["rows"].append(trained)
    assert [goal.reached for goal in judge_goals(record)] == [True, False, True, True]


def test_a_fast_network_has_no_goal_of_efficiency() -> None:
    record = make_goal_record(3.0, processor_efficiency=0.5)
    record["rows"][0]["processor_seconds"] = 0.2  # 4 ms a step
    assert [goal.reached for goal in judge_goals(record)] == [True] * 4


def test_rows_as_near_as_the_solution_is_exact_are_named() -> None:
    rows = [FULL, row("ours", 50.0), row("peer", 54.5)]
    assert list_unclear({"rows": rows, "settings": {"solution_psnr": 60.0}}) == [rows[2]]
    assert list_unclear({"rows": rows, "settings": {}}) == []  # it does not say how exact


def test_a_cache_of_parts_counts_by_its_work() -> None:
    parts = row("peer", 48.0, calls=50, equal="work", work=0.51)
    assert is_comparable(parts, 50)
    assert not is_comparable({**parts, "work": 0.6}, 50)
    assert not is_comparable({**parts, "equal": "calls"}, 50)


# ------------------------------------------------------------------------- which rows, joined
def test_rows_are_chosen_by_name_and_by_kind() -> None:
    kinds = {row.kind for row in choose_peers(kinds=["ours", "plain"])}
    assert kinds == {"ours", "plain"}
    chosen = choose_peers(["DeepCache"], ["peer"], step_level=True)
    names = [row.name for row in chosen]
    assert "DeepCache" in names  # named
    assert "FORA, modules" not in names
    assert "TaylorSeer, whole output" in names
    assert not any(row.rival for row in chosen)
    assert choose_peers() == list_peers()
    with pytest.raises(InputError, match=r"no kind of rows 'peers'; .*peer"):
        choose_peers(kinds=["peers"])


def make_seed_record(seed: int, values: list[float]) -> dict[str, Any]:
    """A record of seed sets of two samples each, from their distances to the exact solution."""
    found = torch.tensor(values, dtype=torch.float64)
    facts = {"seeds": len(values) // 2, "prompts": 2}
    spread = {"psnr_fine_std": found.std(correction=0).item(), "psnr_fine_worst": min(values)}
    own = row("ours", found.mean().item(), **facts, **spread)
    settings = {"first_seed": seed, "model": "x", "solution_psnr": 60.0 + seed / 10_000}
    rows = [{**FULL, **facts}, own]
    return {"rows": rows, "settings": settings, "versions": {}, "command": str(seed)}


def test_seed_sets_are_joined_as_if_they_had_run_together() -> None:
    values = [40.0, 41.0, 45.0, 38.0, 50.0, 42.0]
    whole = make_seed_record(0, values)
    joined = join_records([make_seed_record(20_000, values[4:]), make_seed_record(0, values[:4])])
    assert joined["rows"][1] == pytest.approx(whole["rows"][1])
    assert joined["rows"][0]["seeds"] == 3
    assert joined["settings"] == whole["settings"]
    with pytest.raises(InputError, match="share seeds at 25 calls, and not all"):
        join_records([whole, make_seed_record(20_000, values[4:])])
    other = make_seed_record(30_000, values)
    with pytest.raises(InputError, match="other rows"):
        join_records([whole, {**other, "rows": [FULL | {"seeds": 3}, row("ours", 1.0, name="x")]}])
    stopped = {**other, "settings": {**other["settings"], "unfinished": "1 of 3 seed sets"}}
    with pytest.raises(InputError, match="was stopped: 1 of 3 seed sets"):
        join_records([whole, stopped])


def make_run(
    names: Sequence[str], seed: int, calls: Sequence[int], **settings: Any
) -> dict[str, Any]:
    """A record of these rows at these numbers of calls, of one seed set of two samples."""
    facts = {"seeds": 1, "prompts": 2}
    found = [
        row("x", 40.0 + seed, name=name, budget=budget, **facts)
        for budget in calls
        for name in names
    ]
    settings = {"first_seed": seed, "calibration_samples": 8, "solution_psnr": 60.0, **settings}
    rows = [{**FULL, **facts}, *found]
    return {"rows": rows, "settings": settings, "versions": {}, "command": names[0]}


def test_rows_are_joined_as_if_they_had_run_together() -> None:
    ours, peers = ["mine", *OURS[:1]], ["plain Heun", "MeanCache A"]
    together = ["plain Heun", OURS[0], "MeanCache A", "mine"]
    seeds = (0, SEEDS_APART)
    parts = [make_run(ours, seed, [9, 8, 17, 16], calibration_samples=16) for seed in seeds]
    parts += [make_run(peers, seed, calls) for seed in seeds for calls in ([9, 8], [17, 16])]
    wholes = [make_run(together, seed, calls) for seed in seeds for calls in ([9, 8], [17, 16])]
    joined, expected = join_records(parts), join_records(wholes)
    assert joined["rows"] == expected["rows"]
    assert [row["budget"] for row in joined["rows"][1::4]] == [17, 16, 9, 8]
    assert "calibration_samples" not in joined["settings"]  # of one row, and others had another
    assert expected["settings"] == {**joined["settings"], "calibration_samples": 8}


def test_rows_that_were_measured_on_other_samples_or_twice_are_not_joined() -> None:
    one, other = make_run(["a"], 0, [9]), make_run(["b"], 0, [9])
    with pytest.raises(InputError, match=r"the rows b are in several records"):
        join_records([one, make_run(["b"], SEEDS_APART, [9]), other, other])
    for facts, said in (
        ({"psnr_fine_mean": 37.1}, "37.0 and 37.1 dB"),
        ({"prompts": 3}, "2 and 3"),
    ):
        far = {**other, "rows": [{**other["rows"][0], **facts}, *other["rows"][1:]]}
        with pytest.raises(InputError, match=said):
            join_records([one, far])
    with pytest.raises(InputError, match="2 and 1 seed sets at 9 and 8 calls"):
        join_records([one, make_run(["a"], SEEDS_APART, [9]), make_run(["a"], 0, [8])])
    with pytest.raises(InputError, match="no row beside the full run"):
        join_records([one, {**other, "rows": other["rows"][:1]}])
    with pytest.raises(InputError, match="differ in their settings"):
        join_records([one, make_run(["b"], 0, [9], batch_size=4)])


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


def test_steps_of_a_noise_predicting_network_are_those_of_its_scheduler() -> None:
    scheduler = load_unet().pipeline_model().make_scheduler()
    found = list_grid(scheduler, "epsilon", 5)
    scheduler.set_timesteps(5)
    kept = scheduler.alphas_cumprod[scheduler.timesteps]
    assert found == pytest.approx([*((1 - kept) / kept).sqrt().tolist(), 0.0], rel=1e-5)


# ------------------------------------------------------------------------- a run
@pytest.fixture(scope="module")
def model() -> ShapesWan:
    """The trained model, cut to one block for speed."""
    model = load()
    model.transformer.blocks = model.transformer.blocks[:1]
    return model


EXACT_ROW = "fitted reuse, exact, multistep plan"
TRIED_OUT = {EXACT_ROW, "fitted reuse, exact, searched steps", "fitted reuse, searched steps"}
"""Rows that try settings out on eight samples or more."""
STEP_BY_STEP = tuple(name for name in OURS if name not in TRIED_OUT)


@pytest.fixture(scope="module")
def record(model: ShapesWan) -> Mapping[str, Any]:
    few, held_out = model.demo_prompts()
    setting = Setting(
        model=model, calibration=few[:4], held_out=held_out[:3], steps=STEPS, batch_size=2
    )
    rows = [
        "plain Heun",
        "MeanCache A",
        *STEP_BY_STEP,
        "uniform reuse",
        "plain Euler on ERTACache's steps",
        "plain AB2 on the multistep plan's steps",
        "plain UniPC on the multistep plan's steps",
    ]
    found = compare_peers(setting, calls=[CALLS], seeds=2, rows=rows, command="x")
    record: Mapping[str, Any] = json.loads(json.dumps(found.record(), allow_nan=False))
    return record


def test_a_stopped_run_is_marked(model: ShapesWan, monkeypatch: pytest.MonkeyPatch) -> None:
    few, held_out = model.demo_prompts()
    setting = Setting(model=model, calibration=few[:1], held_out=held_out[:1], steps=4, substeps=2)
    own, kept = Comparison.run_seed_set, []

    def run(compared: Comparison, bar: Any, seed: int, *, backwards: bool) -> None:
        if seed:
            raise KeyboardInterrupt
        own(compared, bar, seed, backwards=backwards)

    monkeypatch.setattr(Comparison, "run_seed_set", run)
    with pytest.raises(KeyboardInterrupt):
        compare_peers(setting, calls=[2], seeds=2, rows=["plain, same solver"], keep=kept.append)
    assert [bench.settings["unfinished"] for bench in kept] == [
        "1 of 2 seed sets",
        "1 of 2 seed sets, and a part of the next",
    ]
    for bench in kept:
        assert [row["status"] for row in bench.rows] == ["unfinished"] * 2
        assert all(row["psnr_fine_worst"] <= row["psnr_fine_mean"] for row in bench.rows)


def test_an_odd_solution_is_refused_before_anything_runs(model: ShapesWan) -> None:
    few, held_out = model.demo_prompts()
    setting = Setting(model=model, calibration=few[:1], held_out=held_out[:1], steps=4)
    with pytest.raises(InputError, match="substeps is 3"):
        compare_peers(replace(setting, substeps=3), calls=[2], rows=["plain Heun"])


@pytest.mark.slow
def test_rows_of_every_kind_are_measured(record: Mapping[str, Any]) -> None:
    rows = {row["name"]: row for row in record["rows"]}
    assert [row for row in rows.values() if row["status"] != "measured"] == []
    assert {row["calls"] for row in rows.values()} == {CALLS, STEPS}
    for name, found in rows.items():
        assert 0 <= found["right"] <= min(found["right_color"], found["right_shape"]), name
        for mean, worst in (("psnr_fine_mean", "psnr_fine_worst"), ("psnr_mean", "psnr_worst")):
            assert name == "full" or found[worst] <= found[mean], name
    assert record["settings"]["solution_psnr"] > rows["full"]["psnr_fine_mean"]
    # velocity reuse is Euler on the computed sigmas, and residual reuse is not
    assert rows["plain Euler on ERTACache's steps"]["psnr_mean"] != pytest.approx(
        rows["uniform reuse"]["psnr_mean"], abs=0.01
    )


@pytest.mark.slow
def test_rows_to_the_exact_solution_are_calibrated_end_to_end(
    model: ShapesWan, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, solved = Runner.solve, []

    def solve(runner: Runner, prompts: Sequence[str], seed: int, substeps: int) -> Solution:
        solved.append(seed)
        return own(runner, prompts, seed, substeps)

    monkeypatch.setattr(Runner, "solve", solve)
    few, held_out = model.demo_prompts()
    setting = Setting(
        model=model,
        calibration=few[:8],
        held_out=held_out[:8],
        steps=6,
        batch_size=8,
        substeps=2,
    )
    names = [EXACT_ROW, ORACLE.name, "fitted reuse, multistep plan"]
    found = compare_peers(setting, calls=[3, 2], seeds=2, rows=names)
    # of the calibration once for all numbers of calls, of each seed set, and of the measured batch
    assert solved == [CALIBRATION_SEEDS, 0, 0, SEEDS_APART]
    rows = {row["name"]: row for row in found.rows if row["budget"] != 2}
    assert [row["detail"] for row in rows.values() if row["status"] != "measured"] == []
    oracle, exact = rows[ORACLE.name], rows[EXACT_ROW]
    assert (oracle["seeds"], oracle["prompts"]) == (1, 8)  # the first batch of all
    assert oracle["speedup"] is None is oracle["processor_efficiency"]
    assert oracle["work"] == exact["work"] == pytest.approx(0.5)
    # four copies, the solution, and runs with moved weights
    assert exact["calibration_calls"] > 8 * 6 * (4 + 8)
    assert exact["psnr_fine_mean"] > rows["fitted reuse, multistep plan"]["psnr_fine_mean"]


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
    for name in (*STEP_BY_STEP, "plain Heun"):
        assert name in page
    assert (tmp_path / "peers.png").stat().st_size > 10_000
    assert 'src="http' not in page
    rest = [{**row, "budget": 4} if row["budget"] else row for row in record["rows"]]
    both = join_records([record, {**record, "rows": rest}])
    assert [leaders.budget for leaders in find_leaders(both["rows"])] == [5, 4]
    with pytest.raises(InputError, match="several records at 5 calls of the same seeds"):
        join_records([record, record])
    with pytest.raises(InputError, match="rows without a kind"):
        join_records([{**record, "rows": [{"name": "full"}]}])
    with pytest.raises(InputError, match="differ in their settings"):
        join_records([record, {**record, "settings": {}}])


@pytest.mark.slow
def test_command(tmp_path: Path, seeming_gpu: None) -> None:
    target = tmp_path / "peers.json"
    asked = ["--samples", "2", "--seeds", "1", "--steps", "6", "--calls", "3", "--calibration", "2"]
    asked += ["--row", "plain Heun", "--row", "planned steps, reuse", "--json", str(target)]
    asked += ["--device", "cpu"]
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
