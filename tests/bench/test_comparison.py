"""`erta bench policies`: the table of rows, how settings are solved, and what a run measures."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from typer.testing import CliRunner

from erta_bench.cli import app
from erta_bench.core.pareto import Point, collect_points, find_frontier, write_pareto_plot
from erta_framework import Policy, Reuse, hookimpl
from erta_framework.compatibility import Role, find_role
from erta_framework.config import build_policies
from erta_framework.errors import BudgetError, CapabilityError, InputError
from erta_framework.plugins import policies
from erta_framework.sampling.guidance import NoGuidance
from erta_framework.session import Trace
from erta_framework.testing import GaussianMixtureFlow

pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")

from erta_bench.comparison import Prepared, _bench, compare_policies, list_peers
from erta_bench.comparison._choice import list_missing_rows
from erta_bench.comparison._contender import (
    BUDGET,
    SOLVED,
    CalibratedBy,
    Contender,
    ListedSteps,
    SearchRange,
    calibrate_with,
    fill,
    mix,
    policy,
)
from erta_bench.comparison._listed import choose_steps
from erta_bench.comparison._memory import MemoryMeter, count_live_bytes, count_only_new
from erta_bench.comparison._preparation import Preparation
from erta_bench.comparison._rows import (
    LONGEST,
    ContenderRow,
    explain_off_budget,
    find_solved_name,
)
from erta_bench.comparison._runner import Runner, count_work
from erta_bench.comparison._search import TRIES, SettingSearch, count_planned_calls
from erta_bench.comparison.contenders import CONTENDERS, UNLISTED
from erta_bench.comparison.inside import ANCHORS, COMPOSED, MODULES, PLANS, VARIANTS
from erta_bench.comparison.page import make_heading, write_page
from erta_bench.other_caches import RIVALS
from erta_bench.setting import Setting
from erta_bench.shapes_image import load_flux, load_unet
from erta_integrations.shapes_wan import ShapesWan, load
from erta_policies.procache import ProCacheProfiler

STEPS, CALLS = 10, 5


# -------------------------------------------------------------------------- the table
def test_every_installed_skip_rule_and_recipe_has_a_row_or_a_reason() -> None:
    """A new policy takes one line in `contenders.py`."""
    found = {
        name
        for name in policies(only=[]).names()
        if find_role(policies().load(name)) in (Role.WHEN, Role.RECIPE, Role.INSIDE)
    }
    listed = {name for contender in CONTENDERS for name in contender.names}
    assert found - listed == set(UNLISTED) & found
    assert set(UNLISTED) <= found
    assert all(len(reason) > 10 for reason in UNLISTED.values())
    assert listed <= set(policies(only=[]).names())


def test_rows_have_names_of_their_own() -> None:
    names = [contender.name for contender in CONTENDERS]
    assert len(set(names)) == len(names)
    assert {c.rival for c in CONTENDERS if c.rival} == set(RIVALS)
    for contender in CONTENDERS:
        seen: list[object] = []
        fill((*contender.policies, contender.options), seen.append)
        assert (SOLVED in seen) == (contender.search is not None), contender.name


def test_an_installed_policy_without_a_row_is_said() -> None:
    class Sometimes(Policy):
        @hookimpl
        def decide(self) -> Reuse:
            return Reuse("always")

    class Installed:
        def names(self) -> list[str]:
            return ["sometimes", "fora", "residual_reuse"]

        def load(self, name: str) -> Any:
            return Sometimes if name == "sometimes" else policies().load(name)

    (row,) = list_missing_rows(Installed())  # type: ignore[arg-type]
    assert (row["name"], row["status"]) == ("sometimes", "no row")


def test_stand_ins_are_filled_at_every_depth() -> None:
    spec = ({"a": {"x": BUDGET, "y": [SOLVED, 1]}}, "b")
    known: Mapping[object, Any] = {BUDGET: 17, SOLVED: 0.5}
    assert fill(spec, known.__getitem__) == ({"a": {"x": 17, "y": [0.5, 1]}}, "b")
    assert calibrate_with("p", a=BUDGET).budgeted
    assert not calibrate_with("p", a=1).budgeted
    nested = mix("m", {"every_branch_agrees": {"policy": {"easycache": {}}}}, "residual_reuse")
    assert nested.names == {"every_branch_agrees", "easycache", "residual_reuse"}


# -------------------------------------------------------------------------- solving
def test_a_published_list_is_taken_as_it_is_and_others_lie_between() -> None:
    listed = ListedSteps("steps", 50, ("0,1,3,7,14,21,28,35,42,49", "0-5,7,10,16,23,30,37,44,49"))
    assert choose_steps(listed, 10, 50) == (0, 1, 3, 7, 14, 21, 28, 35, 42, 49)
    assert choose_steps(listed, 14, 50) == (0, 1, 2, 3, 4, 5, 7, 10, 16, 23, 30, 37, 44, 49)
    for calls, steps in ((2, 50), (8, 50), (12, 50), (17, 50), (25, 50), (10, 20), (20, 20)):
        chosen = choose_steps(listed, calls, steps)
        assert len(set(chosen)) == calls
        assert chosen == tuple(sorted(chosen))
        assert (chosen[0], chosen[-1]) == (0, steps - 1)
    with pytest.raises(BudgetError, match="a first and a last step"):
        choose_steps(listed, 1, 50)


def test_a_threshold_is_solved_for_the_calls_nearest_to_the_budget() -> None:
    tried: list[float] = []

    def calls(threshold: float) -> float:
        tried.append(threshold)
        return 50 / (1 + 40 * threshold)

    search = SettingSearch(SearchRange(1e-3, 3.0), calls)
    assert calls(search.find(25)) == pytest.approx(25, abs=0.25)
    count = len(tried)
    assert calls(search.find(17)) == pytest.approx(17, abs=0.25)
    assert count <= TRIES
    assert search.find(25) == search.find(25)
    assert len(search.tried) == len(set(search.tried))


@pytest.mark.parametrize(("budget", "interval"), [(25, 2), (17, 3), (12, 4), (1, 12)])
def test_an_interval_is_a_whole_number(budget: int, interval: int) -> None:
    search = SettingSearch(SearchRange(1, 12, whole=True), lambda n: -(-50 // int(n)))
    found = search.find(budget)
    assert (found, type(found)) == (interval, int)


def test_a_budget_that_cannot_be_reached_gives_what_is_nearest() -> None:
    search = SettingSearch(
        SearchRange(1e-3, 3.0), lambda threshold: 40.0 if threshold < 0.1 else 30.0
    )
    assert search.tried.get(search.find(17)) == 30.0
    assert len(search.tried) <= TRIES


@pytest.mark.parametrize("budget", [3, 12, 25, 49])
def test_work_may_rise_with_the_value(budget: int) -> None:
    whole = SettingSearch(SearchRange(2, 50, whole=True, rising=True), float)
    assert whole.find(budget) == budget
    factor = SettingSearch(
        SearchRange(1e-3, 1e3, rising=True), lambda gamma: 50 * gamma / (gamma + 0.3)
    )
    assert factor.measure(factor.find(budget)) == pytest.approx(budget, abs=0.5)


def test_of_two_that_are_equally_near_the_one_with_fewer_calls() -> None:
    search = SettingSearch(SearchRange(1, 2, whole=True), {1: 27.0, 2: 23.0}.__getitem__)
    assert search.find(25) == 2


def test_calls_that_are_planned_need_no_run() -> None:
    ratios = [1.0, 1.0, 0.9, 0.9, 1.0, 1.0, 0.5, 0.5]
    two = {"ratios": ratios, "branches": ["a", "b"], "threshold": 0.2, "retention": 0.0}
    (mag,) = build_policies([{"magcache": two}])
    both = [len(plan.computed) for plan in mag.plans(4).values()]  # type: ignore[attr-defined]
    assert count_planned_calls([mag], 4) == sum(both) / 2
    assert count_planned_calls(build_policies([{"fora": {"interval": 3}}]), 8) == 4
    assert count_planned_calls(build_policies(["easycache"]), 8) is None
    assert count_planned_calls(build_policies(["last_step", {"fora": {"interval": 3}}]), 8) is None


# -------------------------------------------------------------------------- what failed
def test_a_long_reason_keeps_its_end_and_a_rival_may_refuse() -> None:
    row = ContenderRow(Contender(name="x", group="policy"), 5)
    row.fail(CapabilityError("Policy(" + "a, " * 300 + ") requires velocity"))
    assert (row.status, len(row.detail)) == ("refused", LONGEST)
    assert row.detail.startswith("CapabilityError: Policy(a, ")
    assert row.detail.endswith("a, ) requires velocity")
    row.fail(ValueError("wrong"))
    assert (row.status, row.detail) == ("error", "ValueError: wrong")
    other = ContenderRow(Contender(name="y", group="other", rival="cache-dit"), 5)
    other.fail(ValueError("not supported\nat all"))
    assert (other.status, other.detail) == ("refused", "ValueError: not supported")


# -------------------------------------------------------------------------- memory
def test_bytes_are_those_of_new_storages() -> None:
    old = torch.zeros(7)
    with count_only_new():
        assert count_live_bytes() == 0
        new = torch.zeros(5, dtype=torch.float64)
        view = new[1:]
        assert count_live_bytes() == 40
        del new
        assert count_live_bytes() == 40  # the view keeps the storage
    assert len(old) + len(view) == 11


# -------------------------------------------------------------------------- the picture
def test_the_frontier_holds_what_nobody_beats() -> None:
    found = [Point(str(k), "policy", c, q) for k, (c, q) in enumerate([(2, 30), (1, 20), (3, 29)])]
    assert [point.name for point in find_frontier(found)] == ["1", "0"]


def test_a_plot_leaves_out_what_has_no_number(tmp_path: Path) -> None:
    rows = [
        {"name": "full", "group": "plain", "calls": 50, "processor_speedup": 1.0},
        {"name": "x", "group": "policy", "status": "refused"},
        {"name": "y", "group": "other", "calls": 5, "processor_speedup": 2.0, "psnr_mean": 30.0},
    ]
    for dark in (False, True):
        assert write_pareto_plot(rows, tmp_path / f"{dark}.png", dark=dark).stat().st_size > 5000


def test_a_plot_has_a_line_of_panels_for_each_axis_that_was_measured(tmp_path: Path) -> None:
    common = {"group": "policy", "calls": 5, "processor_speedup": 2.0, "psnr_mean": 30.0}
    rows = [
        {"name": "full", "group": "plain", "calls": 50, "psnr_fine_mean": 36.0},
        {**common, "name": "near", "psnr_fine_mean": 40.0},
        {**common, "name": "old"},
    ]
    assert [point.quality for point in collect_points(rows, "calls", "psnr_fine_mean")] == [40.0]
    both, one = (
        matplotlib.image.imread(write_pareto_plot(each, tmp_path / f"{len(each)}.png")).shape
        for each in (rows, rows[2:])
    )
    assert (both[0], both[1]) == (2 * one[0], one[1])


# -------------------------------------------------------------------------- a run
@pytest.fixture(scope="module")
def model() -> ShapesWan:
    """The trained model, cut to two blocks for speed."""
    model = load()
    model.transformer.blocks = model.transformer.blocks[:2]
    return model


@pytest.fixture(scope="module")
def setting(model: ShapesWan) -> Setting:
    few, held_out = model.demo_prompts()
    return Setting(model=model, calibration=few[:2], held_out=held_out[:2], steps=STEPS)


ROWS = (
    "plain, same solver",
    "plain UniPC",
    "uniform reuse",
    "ERTACache steps + mean velocity",
    "FBCache",
    "FORA, whole output",
    "FORA, modules",
    "diffusers FirstBlockCache",
    "diffusers MagCache",
    "diffusers PyramidAttentionBroadcast",
)


@pytest.fixture(scope="module")
def record(setting: Setting) -> Mapping[str, Any]:
    found = compare_policies(setting, calls=[CALLS], seeds=2, rows=ROWS, command="x")
    record: Mapping[str, Any] = json.loads(json.dumps(found.record(), allow_nan=False))
    return record


def by_name(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    (row,) = [row for row in record["rows"] if row["name"] == name]
    found: Mapping[str, Any] = row
    return found


@pytest.mark.slow
def test_rows_do_the_work_that_was_asked_for(record: Mapping[str, Any]) -> None:
    in_order = [contender.name for contender in CONTENDERS if contender.name in ROWS]
    assert [row["name"] for row in record["rows"]] == ["full", *in_order]
    full = by_name(record, "full")
    assert (full["calls"], full["psnr_mean"], full["speedup"]) == (STEPS, None, 1.0)
    for name in ROWS[:4]:
        row = by_name(record, name)
        assert (row["status"], row["calls"], row["budget"]) == ("measured", CALLS, CALLS)
        assert row["work"] == pytest.approx(0.5)
        assert (row["seeds"], row["prompts"]) == (2, 2)
        assert row["psnr_mean"] > 10 < row["psnr_fine_mean"]
        saved = STEPS / CALLS
        assert row["efficiency"] == pytest.approx(row["speedup"] / saved)
        assert row["processor_efficiency"] == pytest.approx(row["processor_speedup"] / saved)
    ours, theirs = by_name(record, "FBCache"), by_name(record, "diffusers FirstBlockCache")
    assert ours["setting"] == theirs["setting"]  # the same rule, the same threshold
    assert ours["calls"] == theirs["calls"] < CALLS
    assert ours["psnr_mean"] == pytest.approx(theirs["psnr_mean"], abs=1e-3)
    assert ours["work"] > ours["calls"] / STEPS  # the first block runs at every step
    for row in record["rows"][1:]:
        assert row["equal"] == "work"
        assert (abs(STEPS * row["work"] - CALLS) <= 1.0) == (row["status"] == "measured")
    modules = by_name(record, "FORA, modules")
    assert modules["calls"] == STEPS
    assert modules["status"] == "measured"
    assert modules["kind"] == "peer"
    assert modules["work_flops"] == pytest.approx(modules["work"], abs=0.05)


@pytest.mark.slow
def test_costs_are_counted(record: Mapping[str, Any]) -> None:
    latents = 3 * 5 * 16 * 16 * 4
    uniform = by_name(record, "uniform reuse")
    assert 0 <= uniform["bytes_held"] - 2 * latents < 100  # a residual of each branch
    assert uniform["calibration_calls"] == 0
    assert by_name(record, "ERTACache steps + mean velocity")["calibration_calls"] == 2 * STEPS
    assert by_name(record, "diffusers MagCache")["calibration_calls"] == STEPS
    assert by_name(record, "FBCache")["solving_calls"] > 0
    assert by_name(record, "FORA, whole output")["solving_calls"] == 0  # planned
    assert by_name(record, "FORA, whole output")["setting"] == ""  # it solves its budget itself
    assert by_name(record, "FORA, modules")["setting"].startswith("interval=")


@pytest.mark.slow
def test_a_cache_of_parts_calls_the_network_at_every_step(record: Mapping[str, Any]) -> None:
    row = by_name(record, "diffusers PyramidAttentionBroadcast")
    assert (row["status"], row["calls"]) == ("measured", STEPS)
    assert row["work"] == pytest.approx(0.5, abs=0.1)
    assert row["work_flops"] is None


def test_a_setting_is_named_at_any_depth() -> None:
    names = {c.name: find_solved_name(c) for c in CONTENDERS if c.search is not None}
    assert all(names.values())
    assert (names["FORA, modules"], names["PAB, spatial"]) == ("interval", "spatial")
    assert "FORA, whole output" not in names  # solves its budget itself
    assert names["FBCache"] == "threshold"


def test_a_row_off_its_budget_says_how_much_it_does() -> None:
    whole = Contender(name="x", group="policy", search=SearchRange(1, 12, whole=True))
    assert explain_off_budget(whole, 7.04, STEPS) == (
        "no whole number is nearer; it does the work of 7.0 calls"
    )
    plain = Contender(name="x", group="policy")
    assert "work of 7.0 calls on the measured" in explain_off_budget(plain, 7.04, STEPS)
    assert "it skipped nothing" in explain_off_budget(whole, 9.9, STEPS)
    half = replace(plain, bound="every second step is full")
    assert explain_off_budget(half, 7.04, STEPS, least=True) == (
        "it does the work of 7.0 calls, the least that it can do: every second step is full"
    )


@pytest.mark.slow
def test_the_report_needs_nothing_beside_it(record: Mapping[str, Any], tmp_path: Path) -> None:
    refused = {"name": "other", "group": "policy", "budget": CALLS, "status": "refused"}
    odd = {**record, "rows": [*record["rows"], {**refused, "detail": "because"}]}
    page = write_page(odd, tmp_path / "new").read_text(encoding="utf-8")
    for name in ROWS:
        assert name in page
    assert page.count("data:image/png;base64,") == 2
    assert "Not as asked for" in page
    assert (tmp_path / "new" / "pareto.png").is_file()


@pytest.mark.slow
def test_what_cannot_run_is_a_row(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = replace(RIVALS["cache-dit"], package="not_a_package")
    monkeypatch.setitem(RIVALS, "cache-dit", absent)

    broken_row = Contender(name="broken", group="policy", policies=("easycache",))
    monkeypatch.setattr(_bench, "CONTENDERS", (*CONTENDERS, broken_row))
    own = MemoryMeter.measure

    def measure(meter: MemoryMeter, prepared: Prepared) -> int:
        if prepared.contender is broken_row:
            raise RuntimeError("out of order")
        return own(meter, prepared)

    monkeypatch.setattr(MemoryMeter, "measure", measure)
    rows = ["cache-dit DBCache F1B0", "ERTACache steps + mean velocity", "broken"]
    found = compare_policies(setting, calls=[CALLS], scheduler="unipc", seeds=1, rows=rows)
    said = {row["name"]: (row["status"], str(row.get("detail"))) for row in found.rows}
    assert said["full"][0] == "measured"
    assert said["broken"] == ("error", "RuntimeError: out of order")
    status, detail = said["cache-dit DBCache F1B0"]
    assert status == "not installed"
    assert "pip install not-a-package" in detail
    status, detail = said["ERTACache steps + mean velocity"]
    assert status == "refused"
    assert "first_order" in detail


IMAGE_ROWS = (
    "plain, same solver",
    "plain DPM-Solver++ 2M",
    "uniform reuse",
    "MeanCache A",
    "FBCache",
    "diffusers FirstBlockCache",
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers
@pytest.mark.parametrize("load_image", [load_flux, load_unet])
def test_image_models_run_in_their_own_pipelines(load_image: Callable[[], Any]) -> None:
    image = load_image()
    few, held_out = image.demo_prompts()
    setting = Setting(model=image, calibration=few[:2], held_out=held_out[:2], steps=STEPS)
    found = compare_policies(setting, calls=[CALLS], seeds=1, rows=IMAGE_ROWS).record()
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["full", *(c.name for c in CONTENDERS if c.name in IMAGE_ROWS)]
    assert found["settings"]["scheduler"] == image.pipeline_model().default
    assert image.name in make_heading(found)
    flux = image.name == "shapes-flux"
    for name in IMAGE_ROWS[:3]:
        assert (rows[name]["status"], rows[name]["calls"]) == ("measured", CALLS)
        assert rows[name]["work"] == pytest.approx(0.5)
        assert rows[name]["psnr_mean"] > 15 < rows[name]["psnr_fine_mean"]
    # the fine solution is nearer to the full run than half as many steps are
    assert rows["full"]["psnr_fine_mean"] > rows["plain, same solver"]["psnr_fine_mean"]
    for name in IMAGE_ROWS[3:]:
        assert (rows[name]["status"] == "refused") == (not flux), name
    if flux:
        assert rows["MeanCache A"]["calls"] == CALLS
        assert rows["MeanCache A"]["calibration_calls"] == 2 * STEPS
        assert rows["FBCache"]["work"] > rows["FBCache"]["calls"] / STEPS
    else:
        assert (
            "requires first_order, velocity, which DDIMScheduler" in rows["MeanCache A"]["detail"]
        )
        assert "no trunk that can be skipped" in rows["FBCache"]["detail"]
        assert "has no enable_cache" in rows["diffusers FirstBlockCache"]["detail"]


INSIDE_ROWS = (*MODULES, *PLANS, *COMPOSED)

UNET_ALONE = {
    "DeepCache",
    "DeepCache, branch 1",
    "CFG-Cache, no bands + DeepCache",
    "CacheQuant, cut",
}
FLUX_ALONE = {"H2-Cache", "FreqCa, block stack", "Spectrum, block stack"}
FORCED = {"Spectrum, block stack", "FreqCa, block stack", "SmoothCache, up to 8 steps"}
"""Whose first steps, always full, are more than so short a run may have."""
NEEDS_GRID = {"CFG-Cache", "FasterCache", "PreciseCache, flash"}
"""What looks at height and width, which the tokens of FLUX do not have."""


def test_a_row_that_cannot_do_so_little_gets_the_least_that_it_can(setting: Setting) -> None:
    found = compare_policies(setting, calls=[7, 3], seeds=1, rows=["L2C, greedy"]).record()
    _, more, less = json.loads(json.dumps(found))["rows"]
    assert (more["budget"], more["status"]) == (7, "measured")
    assert (less["budget"], less["status"]) == (3, "off budget")
    assert "the least that it can do: every second step is full" in less["detail"]
    assert STEPS / 2 < STEPS * less["work"] < STEPS * more["work"] < 7 + 1e-6
    # the network, and in every second step once with each of 2 blocks' attention, cross, and MLP
    assert less["calibration_calls"] == more["calibration_calls"] == 2 * (STEPS + STEPS // 2 * 6)


def test_calls_of_rounds_are_counted(model: ShapesWan) -> None:
    prompts = model.demo_prompts()[0][:2]
    preparation = Preparation(Runner(model, steps=4), prompts)
    rounds = calibrate_with("procache_profiler", full=(2,), shortest=0, longest=3)
    plans = ProCacheProfiler(full=(2,), shortest=0, longest=3).count_rounds(4)
    assert plans > 1
    rows: Mapping[int, Mapping[str, Any]] = {
        plans * 4: {"procache": {"profile": rounds, "budget": {"calls": 2}}},
        4: {"skip_policy": {"profile": calibrate_with("residual_profiler"), "calls": BUDGET}},
    }
    for calls, spec in rows.items():
        prepared = preparation.prepare(policy("x", spec), 2)
        assert preparation.count_calibration_calls(prepared) == len(prompts) * calls


def test_a_policy_around_one_inside_works_inside() -> None:
    row = next(c for c in CONTENDERS if c.name == "AdaCorrection on FORA")
    policies = fill_by_hand(row)
    assert policies is not None
    assert Prepared(row, 5, policies=tuple(policies)).works_inside
    assert count_planned_calls(policies, 8) is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers
@pytest.mark.parametrize(
    ("load_model", "names", "refused"),
    [
        (load_flux, INSIDE_ROWS, {*UNET_ALONE, *NEEDS_GRID}),
        (load_unet, (*UNET_ALONE, *NEEDS_GRID, *FLUX_ALONE, "FORA, modules"), FLUX_ALONE),
    ],
    ids=["flux", "unet"],
)
def test_rows_inside_the_network_run_or_say_why_not(
    load_model: Callable[[], Any], names: Collection[str], refused: set[str]
) -> None:
    """All on a transformer, and on a UNet what only one of the two networks can run."""
    model = load_model()
    few, held_out = model.demo_prompts()
    setting = Setting(model=model, calibration=few[:1], held_out=held_out[:1], steps=6)
    found = compare_policies(setting, calls=[4], seeds=1, rows=names).record()
    rows = {row["name"]: row for row in found["rows"]}
    assert set(rows) == {"full", *names}
    assert {name for name, row in rows.items() if row["status"] == "refused"} == refused
    for name in set(names) - refused:
        row = rows[name]
        if name in FORCED and row["status"] == "error":
            assert "are forced by its other settings" in row["detail"]
            continue
        assert row["status"] in ("measured", "off budget"), (name, row["detail"])
        assert 0.1 < row["work"] <= 1.0 + 1e-6, name
        if not row["detail"].startswith("it skipped nothing"):
            assert row["psnr_mean"] is not None, name
            assert row["work"] < 1.0, name
    for name in refused:
        assert "CapabilityError" in rows[name]["detail"]


def fill_by_hand(contender: Contender) -> list[Any] | None:
    """The policies of a row without profiles, at half of the work; None where it has some."""
    found: list[Any] = []
    fill(contender.policies, found.append)
    if any(isinstance(one, CalibratedBy) for one in found):
        return None
    solved = 2 if contender.search is not None and contender.search.whole else 0.5

    def replace_placeholder(what: Any) -> Any:
        return (0, 5) if isinstance(what, ListedSteps) else {BUDGET: 25, SOLVED: solved}[what]

    return build_policies(list(fill(contender.policies, replace_placeholder)))


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda contender: contender.name)
def test_rows_inside_the_network_are_listed_as_such(contender: Contender) -> None:
    policies = fill_by_hand(contender)
    if policies and Prepared(contender, 25, policies=tuple(policies)).works_inside:
        assert contender.name in (*INSIDE_ROWS, *VARIANTS)


def test_both_benchmarks_find_every_row_inside_the_network() -> None:
    peers = {contender.name for contender in list_peers()}
    assert set(INSIDE_ROWS) <= peers
    assert {*INSIDE_ROWS, *VARIANTS} <= {contender.name for contender in CONTENDERS}
    assert set(ANCHORS) <= peers
    (h2,) = (contender for contender in CONTENDERS if contender.name == "H2-Cache")
    ((_, options),) = fill(h2.policies, lambda _: 0.3)[0].items()
    assert options == {"tau1": 0.3, "tau2": 0.3}  # one number is solved for, for both


def test_work_inside_the_network_is_counted_in_operations() -> None:
    (fora,) = build_policies([{"fora": {"level": "modules", "interval": 2}}])
    (whole,) = build_policies([{"fora": {"interval": 2}}])
    row = next(c for c in CONTENDERS if c.name == "FORA, modules")
    assert Prepared(row, 5, policies=(fora,)).works_inside
    assert not Prepared(row, 5, policies=(whole,)).works_inside
    assert count_planned_calls([fora], 8) is None
    assert count_planned_calls([whole], 8) is not None


def test_trials_are_work_in_their_size() -> None:
    trace = Trace()
    assert count_work(trace) == 0.0
    trace.run_trial(lambda x, time: x, 64, torch.zeros(4, 4), None)
    trace.run_trial(lambda x, time: x, 64, torch.zeros(4, 4), None)
    assert count_work(trace) == pytest.approx(8 * 16 / 64)


def test_a_setting_without_a_pipeline_or_guidance_is_refused(setting: Setting) -> None:
    with pytest.raises(InputError, match=r"give guidance=CFG"):
        compare_policies(replace(setting, guidance=NoGuidance()), calls=[CALLS])
    with pytest.raises(InputError, match="does not say how it runs inside a pipeline"):
        compare_policies(replace(setting, model=GaussianMixtureFlow()), calls=[CALLS])
    with pytest.raises(InputError, match="'ddim' is unknown to shapes-wan"):
        compare_policies(setting, calls=[CALLS], scheduler="ddim")


def test_unknown_rows_are_refused(setting: Setting) -> None:
    with pytest.raises(InputError, match=r"no row and no policy 'FBCash'; .*FBCache"):
        compare_policies(setting, calls=[CALLS], rows=["FBCash"])


@pytest.mark.slow
def test_command(tmp_path: Path, seeming_gpu: None) -> None:
    path = tmp_path / "policies.json"
    options = ["policies", "--prompts", "2", "--seeds", "1", "--steps", "6", "--calls", "3"]
    options += [
        "--device",
        "cpu",
        "--row",
        "uniform reuse",
        "--json",
        str(path),
        "--report",
        str(tmp_path / "page"),
    ]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    found = json.loads(path.read_text())
    assert found["command"] == (
        'erta bench policies --model shapes-wan --calls 3 --row "uniform reuse" --prompts 2 '
        "--seeds 1 --steps 6 --calibration 8 --batch-size 16 --seed 0 --device cpu"
    )
    assert [row["name"] for row in found["rows"]] == ["full", "uniform reuse"]
    assert (tmp_path / "page" / "report.html").is_file()
