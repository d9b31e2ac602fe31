"""`erta bench scale`: its sums on made-up numbers, and the whole of it in real processes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from erta_bench.cli import app
from erta_bench.scale import ScaleError
from erta_bench.scale._processes import Answer, WorkerProcess, start_processes
from erta_bench.scale._speed import make_speed_rows, make_traffic_row


def round_of(job: tuple[float, float], plain: tuple[float, float]) -> dict[tuple[str, int], Answer]:
    """Rates of one and of two processes; two need a quarter more processor time a sample."""
    rates = {"job": job, "plain": plain}
    return {
        (kind, count): {"rate": rates[kind][count - 1], "processor": 1.0 + 0.25 * (count - 1)}
        for kind in rates
        for count in (1, 2)
    }


def test_efficiency_is_what_the_machine_allows() -> None:
    # the machine gives 1.6 x with two processes; the job 1.2 x, 1.6 x and 1.52 x
    rounds = [round_of((5.0, job), (10.0, 16.0)) for job in (6.0, 8.0, 7.6)]
    rounds[0]["job", 2]["processor"] *= 2
    one, two = make_speed_rows(rounds, 2)
    assert (one["processes"], one["efficiency"], one["machine_limit"]) == (1, 1.0, 1.0)
    assert two["machine_limit"] == 0.8
    assert two["efficiency"] == pytest.approx(0.95)
    assert (two["efficiency_least"], two["efficiency_most"]) == pytest.approx((0.75, 1.0))
    assert two["efficiency_processor"] == 1.0
    assert (two["samples_per_second"], two["plain_per_second"], two["rounds"]) == (7.6, 16.0, 3)


def test_what_is_sent_is_of_the_steps_that_may_ask() -> None:
    told = {
        "collectives": 9, "bytes": 27, "collectives_at_the_start": 1, "bytes_at_the_start": 48,
    }  # fmt: skip
    row = make_traffic_row("agreed", [told, dict(told)], steps=10)
    assert (row["collectives_per_step"], row["bytes_per_step"]) == (1.0, 3.0)
    assert (row["collectives_at_the_start"], row["bytes_at_the_start"]) == (1, 48)
    with pytest.raises(ScaleError, match="do not send alike, agreed"):
        make_traffic_row("agreed", [told, {**told, "bytes": 28}], steps=10)


def test_a_process_that_is_late_or_gone_ends_the_benchmark() -> None:
    clock = time.monotonic()
    process = WorkerProcess(0, "shapes-wan", 2, limit=0.3)
    try:
        with pytest.raises(ScaleError, match=r"ended or took more than 0.3 s"):
            process.read()
        process._process.wait()
        with pytest.raises(ScaleError, match="is gone"):
            process.send({"kind": "plain"})
    finally:
        process.close()
    assert time.monotonic() - clock < 60


@pytest.mark.slow
def test_command(tmp_path: Path) -> None:
    with pytest.raises(ScaleError, match="ended or took"), start_processes(1, "no-model", 2, 60.0):
        pytest.fail("a process without a model was ready")
    path = tmp_path / "scale.json"
    options = ["--steps", "3", "--samples", "4", "--rounds", "1", "--json", str(path)]
    said = CliRunner().invoke(app, ["scale", *options])
    assert said.exit_code == 0, said.output
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["command"] == (
        "erta bench scale --model shapes-wan --steps 3 --samples 4 --rounds 1 --processes 2"
    )
    one, two, alone, static, agreed = record["rows"]
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["efficiency"] == one["machine_limit"] == 1.0
    for key in ("efficiency", "efficiency_processor", "machine_limit", "samples_per_second"):
        assert two[key] > 0
    assert {row["processes"] for row in (alone, static, agreed)} == {2}
    sent = [
        (row["collectives_at_the_start"], row["collectives_per_step"], row["bytes_per_step"])
        for row in (alone, static, agreed)
    ]
    # ranks wait for each other and agree once, that all can begin; a static plan is compared at the
    # start and the end; a vote is two flags and one byte a sample
    assert sent[0] == (2, 0.0, 0.0)
    assert sent[1] == (1, 1 / 2, 16 / 2)
    assert sent[2] == (1, 1.0, 3.0)
