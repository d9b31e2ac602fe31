"""`erta bench families`: what is counted, what is judged, and what happens to a bad process."""

from __future__ import annotations

import functools
import json
import logging
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from erta_bench.cli import app
from erta_bench.core import Bench
from erta_framework.errors import InputError
from erta_framework.plugins import benches

pytest.importorskip("diffusers")

from erta_bench.families import compare_families, update_rows
from erta_bench.families._cell import ONE_SAMPLE, judge_run, make_row, measure_cell
from erta_bench.families._isolated import GoneError, run_isolated
from erta_bench.families._methods import METHODS, FamilyMethod
from erta_bench.other_caches import LayerWork, watch_layers
from tiny_pipelines import FAMILIES


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """A cell is meant for a process of its own, where it silences everything."""
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        yield
    logging.disable(logging.NOTSET)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["wan-euler", "flux"])
def test_ours_runs_exactly_the_layers_of_its_steps(name: str) -> None:
    row = measure_cell(name, "erta skip_policy", 8)
    assert row["status"] == "works"
    assert row["real_calls"] == row["full_calls"] * 5 / 8  # steps 0, 2, 4, 6 and the last
    assert row["work"] == pytest.approx(5 / 8)


@pytest.mark.parametrize(
    ("name", "method", "status", "work", "detail"),
    [
        ("flux", "erta per sample", "works", 9 / 16, ""),  # all of step 0, half of each other
        ("hidream", "erta per sample", "no-effect", 1.0, "encoder_hidden_states_llama3 (2, 4, 8"),
        ("ltx2", "erta per sample", "no-effect", 1.0, "it returns more than one output"),
        ("dit", "erta trunk seam", "works", None, ""),
        ("sd", "erta trunk seam", "error", None, "has no trunk that can be skipped"),
        ("sd", "erta probe", "error", None, "has no trunk that can be skipped"),
    ],
)
def test_ours_at_every_seam(
    name: str, method: str, status: str, work: float | None, detail: str
) -> None:
    row = measure_cell(name, method, 8)
    assert row["status"] == status
    assert detail in str(row["detail"])
    assert bool(row["detail"]) == bool(detail)
    if work is not None:
        assert row["work"] == pytest.approx(work)


def test_the_probe_runs_its_block_at_every_step() -> None:
    probed, trunk = (
        measure_cell("wan-euler", f"erta {kind}", 8) for kind in ("probe", "trunk seam")
    )
    assert probed["status"] == trunk["status"] == "works"
    # two blocks of 10 layers, two branches; the branch that is asked first runs the probe
    assert trunk["real_calls"] == trunk["full_calls"] - 3 * 2 * 2 * 10
    assert probed["real_calls"] == probed["full_calls"] - 4 * (1 + 2) * 10


def test_a_pipeline_of_one_sample_cannot_show_a_mask() -> None:
    single = next(name for name, family in FAMILIES.items() if not family.batches)
    row = measure_cell(single, "erta per sample", 8)
    assert (row["status"], row["detail"]) == ("no-effect", ONE_SAMPLE)


def test_two_families_differ_in_what_works_on_them() -> None:
    """TaylorSeer finds no module of Wan by itself, and says nothing."""
    rows = {name: measure_cell(name, "TaylorSeer", 8) for name in ("wan-euler", "flux")}
    assert rows["flux"]["status"] == "works"
    assert rows["wan-euler"]["status"] == "no-effect"
    assert rows["wan-euler"]["real_calls"] == rows["wan-euler"]["full_calls"]
    assert rows["wan-euler"]["work"] == 1
    assert rows["wan-euler"]["detail"] == "every layer ran and the output is identical"


def test_an_error_is_a_row_with_its_first_line() -> None:
    row = measure_cell("sd3", "FirstBlockCache", 8)
    assert (row["status"], row["real_calls"], row["work"]) == ("error", None, None)
    assert str(row["detail"]).startswith("ValueError: ")
    assert "\n" not in str(row["detail"])


def test_layers_are_counted_beneath_what_wraps_them() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    work = watch_layers((network,))
    inner = network[1]
    computed = inner.forward
    network(torch.ones(5, 3))
    vars(inner)["forward"] = lambda x: torch.zeros(len(x), 2)
    network(torch.ones(2, 3))
    assert (work.calls, work.elements, work.batch) == (3, 5 * 4 + 5 * 2 + 2 * 4, 5)
    assert computed(torch.ones(1, 4)).shape == (1, 2)


@pytest.mark.parametrize(
    ("output", "elements", "status"),
    [(1.0, 5, "works"), (0.0, 5, "no-effect"), (1.0, 9, "no-effect"), (float("nan"), 5, "error")],
)
def test_judged(output: float, elements: int, status: str) -> None:
    found, detail = judge_run(
        torch.zeros(1), torch.tensor([output]), LayerWork(9, 9), LayerWork(9, elements)
    )
    assert found == status
    assert bool(detail) == (status != "works")


def test_a_method_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "rival", FamilyMethod(lambda *_: "", package="not_a_package"))
    (row,) = compare_families(["flux"], ["rival"]).rows
    assert row["modules"] == "exact"
    assert (row["status"], row["detail"]) == ("not installed", "pip install not-a-package")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match=r"no family 'fluks'.*flux"):
        compare_families(["fluks"])
    with pytest.raises(InputError, match=r"no method 'MagCash'.*MagCache"):
        compare_families(["flux"], ["MagCash"])


def test_an_update_keeps_the_other_rows(tmp_path: Path) -> None:
    def run(status: str, *names: str) -> Bench:
        rows = [make_row(name, "MagCache", status, "") for name in names]
        return Bench("some", rows, {}, {"steps": 8}, versions={"torch": "1"}, machine={"cores": 2})

    path = run("works", "wan-euler", "flux", "gone").write(tmp_path / "families.json")
    found = update_rows(run("error", "sdxl", "flux"), path)
    assert [(r["family"], r["status"]) for r in found.rows] == [
        ("wan-euler", "works"),
        ("flux", "error"),
        ("sdxl", "error"),
    ]
    assert found.command == (
        "erta bench families --family wan-euler --family flux --family sdxl "
        '--method "MagCache" --steps 8'
    )
    newer = replace(run("works", "flux"), versions={"torch": "2"})
    with pytest.raises(InputError, match="its versions have torch '1', this run has '2'"):
        update_rows(newer, path)


def test_an_update_needs_a_file(tmp_path: Path) -> None:
    options = ["families", "--update", "--json", str(tmp_path / "absent.json")]
    result = CliRunner().invoke(app, options)
    assert isinstance(result.exception, InputError)
    assert "--update needs a file that exists" in str(result.exception)


def test_it_is_a_command_that_an_entry_point_brings() -> None:
    assert "families" in benches().names()
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for name in ("ablation", "overhead", "families"):
        assert name in result.output
    assert CliRunner().invoke(app, ["familys"]).exit_code == 2


@pytest.mark.slow
def test_bad_processes_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GoneError, match=r"no answer within 0\.5 s"):
        run_isolated(time.sleep, 600, timeout=0.5)
    with pytest.raises(GoneError, match="ended with exit code 7"):
        run_isolated(functools.partial(__import__("os")._exit, 7), timeout=60)


@pytest.mark.slow
def test_command(tmp_path: object) -> None:
    path = f"{tmp_path}/families.json"
    options = ["families", "--family", "flux", "--method", "erta skip_policy", "--json", path]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    with open(path, encoding="utf-8") as file:
        record = json.load(file)
    assert (
        record["command"]
        == 'erta bench families --family flux --method "erta skip_policy" --steps 8'
    )
    assert [(r["family"], r["method"], r["status"]) for r in record["rows"]] == [
        ("flux", "erta skip_policy", "works")
    ]
