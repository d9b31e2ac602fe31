"""A job of many simulated ranks: nothing lost or made twice, and what it asks of the files."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from erta_bench.cli import app
from erta_bench.scale import Scenario, SimulationError
from erta_bench.scale._file_calls import FileCalls, Killed
from erta_bench.scale._simulate import require_whole, simulate_job
from erta_bench.scale._simulated_job import Job, Rank, find_part
from erta_integrations.fabric.jobs import SHARD, Claim, Claims, Item, Store, Tally, write_manifest


def items(count: int) -> tuple[Item, ...]:
    return tuple(Item(k, f"prompt {k}", k) for k in range(count))


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No disk is waited for: what survives a power failure is tested elsewhere."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


# ------------------------------------------------------------------------------------ files
def test_file_operations_are_counted_by_kind_and_second(tmp_path: Path) -> None:
    inside, now = tmp_path / "job", 0.0
    with FileCalls(inside, lambda: now) as calls:
        inside.mkdir()
        os.symlink("nobody", inside / "claim")
        now = 3.9
        (inside / "file").write_text("text")
        (tmp_path / "elsewhere").write_text("text")
        os.replace(inside / "file", inside / "other")
        os.listdir(inside)
        assert os.path.lexists(inside / "claim")
        with calls.unseen():
            os.listdir(inside)
    os.listdir(inside)
    assert calls.counts == {"create": 2, "open": 1, "rename": 1, "list": 1, "look": 1}
    assert calls.seconds == {0: 2, 3: 4}


def write_and_remove(path: Path) -> None:
    path.write_text("")
    try:
        path.with_name("two").mkdir()
    finally:
        path.unlink()


def test_a_kill_lets_nothing_pass_afterwards(tmp_path: Path) -> None:
    with FileCalls(tmp_path, lambda: 0.0) as calls:
        with pytest.raises(Killed), calls.kill_after(1):
            write_and_remove(tmp_path / "one")
        (tmp_path / "three").mkdir()
    assert sorted(os.listdir(tmp_path)) == ["one", "three"]


# --------------------------------------------------------------------------------- failures
@pytest.mark.parametrize("seed", range(3))
def test_deaths_machines_and_an_outage_lose_nothing(tmp_path: Path, seed: int) -> None:
    scenario = Scenario(
        ranks=24, samples=300, node=4, failures=True, deaths=0.4, machines=0.3, seed=seed
    )
    row = simulate_job(scenario, tmp_path / "job")
    assert (row["lost"], row["made_twice"]) == (0, 0)
    assert row["deaths"] > 24 + 5  # the outage ends all that are left, and others died besides
    assert 0 < row["begun_again"] <= row["deaths"]
    assert row["processes"] > 24 + 12


def test_a_job_of_one_rank(tmp_path: Path) -> None:
    row = simulate_job(Scenario(ranks=1, samples=5), tmp_path / "job")
    assert (row["processes"], row["deaths"], row["begun_again"]) == (1, 0, 0)
    assert row["idle"] == row["idle_fixed"] == 0.0


# ------------------------------------------------------------------------------------- cost
def test_a_job_without_failures(tmp_path: Path) -> None:
    row = simulate_job(Scenario(ranks=32, samples=640, slow=0.25), tmp_path / "job")
    assert (row["processes"], row["deaths"], row["begun_again"]) == (32, 0, 0)
    # a slow rank keeps its whole part to the end where parts are fixed
    assert row["idle"] < 0.2 < 0.5 < row["idle_fixed"]
    assert row["largest_folder"] == SHARD
    assert row["rename_a_sample"] == 1  # the outputs
    assert row["create_a_sample"] < 3
    assert row["operations"] < 30


@pytest.mark.slow
def test_many_ranks_ask_little_of_the_file_system(tmp_path: Path) -> None:
    row = simulate_job(Scenario(ranks=512, samples=2560), tmp_path / "job")
    assert row["largest_folder"] == 512
    # a rank that looked before it leaves at what each of the others holds would need thousands
    assert row["operations"] * 2560 / 512 < 700


def test_few_look_where_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists: Counter[Rank] = Counter()
    turn = Job.turn

    def counted(self: Job, rank: Rank, operations: int | None) -> None:
        before = self.calls.counts["list"]
        turn(self, rank, operations)
        lists[rank] += self.calls.counts["list"] - before

    monkeypatch.setattr(Job, "turn", counted)
    outcome = Job(Scenario(ranks=24, samples=6 * SHARD), tmp_path / "job", items(6 * SHARD)).run()
    leaders = [rank for rank in outcome.ranks if rank.position[0] == 0]
    assert len(leaders) == 1
    for rank in outcome.ranks:
        if rank is not leaders[0]:  # stays, and looks at everything again and again
            begin, end = find_part(rank.position[0], 24, 6 * SHARD)
            others = [index for index in rank.made if not begin <= index < end]
            # one for each sample of another rank's part, and again where a third was quicker; each
            # shard until it has no more; then the outputs of each, and the claims of at most four
            assert lists[rank] <= 2 * (len(others) + 1) + 6 + 6 + 4


# ------------------------------------------------------------------- a check that can fail
def done(folder: Path, count: int = 40) -> tuple[Job, Callable[[], None]]:
    job = Job(Scenario(ranks=4, samples=count), folder, items(count))
    outcome = job.run()
    write_manifest(folder, job.items, Store(folder), Tally(folder))
    return job, lambda: require_whole(outcome, folder, job.items)


def test_what_is_lost_torn_or_left_is_seen(tmp_path: Path) -> None:
    job, check = done(tmp_path / "job")
    check()
    store = Store(job.folder)
    data = store.path(7).read_bytes()
    store.path(7).unlink()
    with pytest.raises(SimulationError, match=r"1 samples of 40 are missing, such as \[7\]"):
        check()
    store.path(7).write_bytes(store.path(8).read_bytes())
    with pytest.raises(SimulationError, match=r"are torn, such as \[7\]"):
        check()
    store.path(7).write_bytes(data)
    store.partial(9, 0).touch()
    with pytest.raises(SimulationError, match=r"left a partial file, such as \[9\]"):
        check()
    store.partial(9, 0).unlink()
    check()
    path = job.folder / "manifest.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(SimulationError, match="are not in the manifest once"):
        check()


@pytest.mark.parametrize(
    ("both", "message"),
    [
        (True, r"1 samples of 40 were made twice"),
        (False, r"1 samples of 40 were begun again without need"),
    ],
)
def test_a_sample_that_two_ranks_have_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, both: bool, message: str
) -> None:
    found = Claims._is_abandoned
    mistakes: list[int] = []

    def abandoned(self: Claims, claim: Claim, *rest: object) -> bool:
        if mistakes:
            return found(self, claim, *rest)  # type: ignore[arg-type]
        mistakes.append(claim.index)
        return True

    monkeypatch.setattr(Claims, "_is_abandoned", abandoned)
    if both:
        monkeypatch.setattr(Claims, "holds", lambda *_: True)
    with pytest.raises(SimulationError, match=message):
        simulate_job(Scenario(ranks=4, samples=40, spread=1.0), tmp_path / "job")
    assert len(mistakes) == 1


# ---------------------------------------------------------------------------------- command
def test_command(tmp_path: Path) -> None:
    path = tmp_path / "simulate.json"
    options = ["--ranks", "4", "--ranks", "9", "--samples", "60", "--folder", str(tmp_path)]
    said = CliRunner().invoke(app, ["simulate", *options, "--json", str(path)])
    assert said.exit_code == 0, said.output
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["command"] == (
        f"erta bench simulate --ranks 4 --ranks 9 --samples 60 --seed 0 --folder {tmp_path}"
    )
    assert [(row["ranks"], row["failures"]) for row in record["rows"]] == [
        (4, False), (4, True), (9, False), (9, True),
    ]  # fmt: skip
    assert {row["lost"] for row in record["rows"]} == {0}
    assert os.listdir(tmp_path) == ["simulate.json"]
