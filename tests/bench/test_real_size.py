"""`erta bench real-size`: the sizes of the networks, and the script at a tiny size."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers

from erta_bench.cli import app
from erta_bench.core import Row
from erta_bench.real_size import NETWORKS, RealNetwork, Setup, _measure, measure_real_size, shrink
from erta_bench.real_size._measure import Way, compare_with_untouched, count_syncs, list_ways
from erta_framework.errors import InputError

REUSED = "attention and MLPs, reused"


@pytest.mark.parametrize(
    ("name", "billions"), [("wan2.1-1.3b", (1.3, 1.5)), ("flux.1", (11.8, 12.0))]
)
def test_networks_have_the_published_number_of_parameters(
    name: str, billions: tuple[float, float]
) -> None:
    network = NETWORKS[name]
    with torch.device("meta"):
        made = getattr(diffusers, network.network)(**network.config)
    count = sum(parameter.numel() for parameter in made.parameters()) / 1e9
    assert billions[0] < count < billions[1]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_tiny_form_runs_in_the_precision_of_the_real_one(name: str) -> None:
    network, cpu = shrink(NETWORKS[name]), torch.device("cpu")
    pipe = network.build(cpu, torch.bfloat16)
    assert {parameter.dtype for parameter in pipe.transformer.parameters()} == {torch.bfloat16}
    found = pipe(**network.make_request(cpu, torch.bfloat16, 2), return_dict=False)[0]
    assert bool(torch.as_tensor(found).isfinite().all())


def test_every_way_is_timed_and_none_waits_for_the_device() -> None:
    setup = Setup(steps=4, repeats=1)
    bench = measure_real_size([shrink(NETWORKS["wan2.1-1.3b"])], setup, compiled=(False,))
    rows = {str(row["name"]): row for row in bench.rows}
    assert len(rows) == 7
    assert [rows[name]["work"] for name in ("untouched", "attached, nothing skipped")] == [1, 1]
    # of 4 steps the second is left out, and the last always runs
    assert rows["whole outputs, reused"]["work"] == 0.75
    assert rows["attention and MLPs, never left out"]["work"] == 1
    assert 0.5 <= float(rows[REUSED]["work"] or 0) < 1
    for row in rows.values():
        assert row["status"] == "measured"
        assert row["syncs"] == 0, row
        assert row["peak_gib"] is None
        assert float(row["seconds"] or 0) > 0


@pytest.mark.slow
def test_compiled_blocks_are_measured_beside_eager_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def list_two(interval: int) -> list[Way]:
        return [way for way in list_ways(interval) if way.name in ("untouched", REUSED)]

    monkeypatch.setattr(_measure, "list_ways", list_two)
    setup = Setup(steps=4, repeats=1, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler warns about its own use of torch
        bench = measure_real_size([shrink(NETWORKS["wan2.1-1.3b"])], setup)
    assert [row["compiled"] for row in bench.rows] == ["no", "no", "yes", "yes"]
    eager, compiled = bench.rows[:2], bench.rows[2:]
    assert [row["work"] for row in eager] == [row["work"] for row in compiled]
    assert all(row["syncs"] == 0 for row in bench.rows)


def test_a_wait_is_seen_in_the_trace() -> None:
    def ask(**request: Any) -> None:
        assert bool((torch.ones(3) > 0).all())
        torch.ones(3).nonzero()

    assert count_syncs(ask, {}, torch.device("cpu")) == 2


def test_efficiency_is_the_speed_over_what_the_work_allows() -> None:
    untouched: Row = {"seconds": 10.0, "work": 1.0, "syncs_all": 4, "peak_gib": 3.0}
    row: Row = {"seconds": 5.2, "work": 0.5, "syncs_all": 4, "peak_gib": 3.5}
    row = compare_with_untouched(row, untouched)
    assert row["speedup"] == pytest.approx(1.923, abs=1e-3)
    assert row["efficiency"] == pytest.approx(0.9615, abs=1e-3)
    assert (row["syncs"], row["extra_gib"]) == (0, 0.5)


def test_what_cannot_be_measured_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="3 steps, interval 2, 1 repeats: give at least 4 steps"):
        Setup(steps=3, repeats=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for words, message in ((["--network", "x"], "no network 'x'"), ([], "try the script with")):
        found = CliRunner().invoke(app, ["real-size", *words])
        assert found.exit_code != 0
        assert message in f"{found.output} {found.exception}"


def test_shrinking_keeps_the_pipeline() -> None:
    for network in NETWORKS.values():
        small: RealNetwork = shrink(network)
        assert (small.pipeline, small.branches) == (network.pipeline, network.branches)
