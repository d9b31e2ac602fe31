"""What a later run makes of the folder of an earlier one: damage, litter, strangers, odd disks."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from erta_framework.errors import InputError
from erta_framework.jobs import JobConfig, JobRequest, Summary
from erta_integrations.fabric.jobs import (
    Item,
    SampledItem,
    Store,
    Tally,
    Worker,
    open_folder,
    run_job,
)

COUNT = 4


class Counting:
    """Samples numbers and remembers which."""

    known = ()

    def __init__(self) -> None:
        self.made: list[int] = []

    def identity(self) -> dict[str, Any]:
        return {"model": "counting"}

    def check(self, overrides: object) -> None:
        return None

    def sample(self, items: list[Item]) -> list[SampledItem]:
        self.made += [item.index for item in items]
        return [
            SampledItem(
                {"sample": torch.full((32,), float(item.seed))}, {"index": item.index}, 0.001
            )
            for item in items
        ]


def run(folder: Path, **options: Any) -> tuple[Summary, list[int]]:
    """A run of the job, and what it sampled."""
    source = Counting()
    request = JobRequest(
        prompts=[f"prompt {k}" for k in range(COUNT)],
        output=folder,
        resume=True,
        quiet=True,
        job=JobConfig(),
        **options,
    )
    return run_job(request, source), source.made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a job that is done."""
    summary, made = run(tmp_path / "job")
    assert summary.complete
    assert sorted(made) == list(range(COUNT))
    return tmp_path / "job"


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------ damage
def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").touch()


def make_dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "a flipped bit": flip,
    "a folder": make_folder,
    "a dangling link": make_dangling,
    "another sample": lambda path: shutil.copy(path.with_name("0000000.safetensors"), path),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_sample_is_made_again(
    folder: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(folder)
    before = store.path(2).read_bytes()
    DAMAGE[damage](store.path(2))
    with caplog.at_level(logging.WARNING):
        summary, made = run(folder)
    assert summary.complete
    assert made == [2]
    assert "0000002.safetensors" in caplog.text
    assert "does not count as done" in caplog.text
    assert store.path(2).read_bytes() == before
    assert [line["event"] for line in lines(folder)] == ["done"] * COUNT
    assert run(folder)[1] == []  # what was made again is believed


def test_the_manifest_says_size_and_digest(folder: Path) -> None:
    for line in lines(folder):
        assert {key: line[key] for key in ("bytes", "sha256")} == Store(folder).seal(line["index"])
        assert line["bytes"] == Store(folder).path(line["index"]).stat().st_size


def test_without_lines_the_header_alone_is_checked(folder: Path) -> None:
    shutil.rmtree(folder / "manifest")
    store = Store(folder)
    store.path(1).write_bytes(store.path(1).read_bytes()[:-1])
    assert run(folder)[1] == [1]


def test_of_several_digests_any_is_believed(folder: Path) -> None:
    """Another kind of device may have made other bytes of the same sample."""
    store = Store(folder)
    (log,) = (folder / "manifest").glob("*.jsonl")
    line = {**lines(folder)[3], "sha256": "0" * 64}
    log.with_name("a-later-one.jsonl").write_text(json.dumps(line) + "\n")
    assert run(folder)[1] == []
    flip(store.path(3))
    assert run(folder)[1] == [3]


def test_while_another_works_only_one_looks_for_damage(folder: Path) -> None:
    store = Store(folder)
    flip(store.path(0))
    with Worker(folder) as other:
        first = folder / "workers" / "0-first.json"
        other.path.rename(first)
        assert run(folder)[1] == []
        first.rename(folder / "workers" / "zzz-last.json")
        assert run(folder)[1] == [0]


# ------------------------------------------------------------------------------------ litter
def test_litter_of_killed_runs_is_taken_away(folder: Path) -> None:
    samples = Store(folder).folder / "00000"
    dead = [samples / ".0000001.0.partial", samples / ".0000009.3.partial"]
    old = [folder / ".job.17.4.partial", folder / ".manifest.jsonl.17-0a.partial"]
    (folder / "pictures").mkdir()
    drawn = [folder / "pictures/.0000001.gif"]
    for path in (*dead, *old, *drawn):
        path.write_text("torn")
    for path in old:
        os.utime(path, (0, 0))
    (folder / "workers/gone-1-ab.json").write_text("{}")
    os.utime(folder / "workers/gone-1-ab.json", (0, 0))
    fresh = folder / ".manifest.jsonl.18-0b.partial"
    fresh.write_text("somebody is writing it")
    assert run(folder)[1] == []
    assert [path for path in (*dead, *old, *drawn) if path.exists()] == []
    assert fresh.exists()
    assert os.listdir(folder / "workers") == []


def test_what_a_living_worker_writes_stays(folder: Path) -> None:
    store = Store(folder)
    store.path(1).unlink()
    with Worker(folder) as other:
        other.path.rename(folder / "workers" / "zzz.json")
        other.path = folder / "workers" / "zzz.json"
        claim = folder / "claims/00000/0000001.1"
        claim.symlink_to("zzz")
        store.partial(1, 1).write_text("half")
        request = JobRequest(prompts=["prompt 0"] * COUNT, output=folder, resume=True, quiet=True)
        from erta_integrations.fabric.jobs._resume import tidy_folder

        tally = Tally(folder)
        tidy_folder(folder, COUNT, request.job.lease, tally)
        assert store.partial(1, 1).read_text() == "half"
        assert other.path.exists()
    tidy_folder(folder, COUNT, 60.0, tally)
    assert not store.partial(1, 1).exists()


# --------------------------------------------------------------------------------- strangers
STRANGERS = (
    "notes.txt",
    "samples/notes.txt",
    "samples/00000/notes.safetensors",
    "samples/00000/0000300.safetensors",
    "samples/00000/x.0.partial",
    "samples/.DS_Store",
    "claims/00000/notes",
    "claims/00000/a.b.c.d",
    "claims/00000/0000001.0.failed.bak",
    "claims/notes",
    "workers/notes.json",
    "manifest/notes.jsonl",
    "manifest/list.jsonl",
    "pictures/.DS_Store",
)


def test_stray_files_and_folders_do_no_harm(folder: Path) -> None:
    text = '{"event": "done"}\n{"event": "failed", "index": "x"}\n[1]\n' + "[" * 9000 + "\n\xff\n"
    for name in STRANGERS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        (folder / f"{name}.d").mkdir()
        (folder / name).with_suffix(".folder" + (folder / name).suffix).mkdir()
    Store(folder).path(2).unlink()
    summary, made = run(folder)
    assert summary.complete
    assert made == [2]
    assert summary.done == COUNT


@pytest.mark.parametrize("facts", ["[]", "{}", '"x"', '{"host": 3, "pid": "x"}', "[" * 9000])
def test_a_worker_file_that_says_nothing_is_known_by_its_age(folder: Path, facts: str) -> None:
    with Worker(folder) as here:
        path = folder / "workers/odd.json"
        path.write_text(facts)
        assert here.is_alive("odd")
        os.utime(path, (0, 0))
        assert not here.is_alive("odd")


def test_a_claim_that_is_a_folder_is_taken_over(folder: Path) -> None:
    Store(folder).path(1).unlink()
    claim = folder / "claims/00000/0000001.5"
    claim.mkdir()
    os.utime(claim, (0, 0))
    assert run(folder)[1] == [1]


# --------------------------------------------------------------------------- links and names
@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV])
def test_a_file_system_without_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refused)
    if number != errno.EXDEV:
        monkeypatch.setattr(os, "symlink", refused)
    summary, made = run(tmp_path / "job")
    assert summary.complete
    assert len(made) == COUNT
    assert run(tmp_path / "job")[1] == []
    with pytest.raises(InputError, match="holds a job already"):
        open_folder(tmp_path / "job", {}, resume=False)
    with pytest.raises(InputError, match="holds another job"):
        open_folder(tmp_path / "job", {"model": "other"}, resume=True)


@pytest.mark.parametrize("torn", ["", '{"schema": "erta'])
def test_a_job_that_was_killed_before_it_had_written_what_it_is(
    tmp_path: Path, torn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("erta_integrations.fabric.jobs._store.WAITS", (0.0,))
    (tmp_path / "job").mkdir()
    (tmp_path / "job/job.json").write_text(torn)
    assert run(tmp_path / "job")[0].complete
    (tmp_path / "job/job.json").write_text(torn)
    with pytest.raises(InputError, match=r"cannot read .*job\.json"):
        run(tmp_path / "job")


@pytest.mark.parametrize("generation", [0, 1])
def test_a_planted_link_is_not_followed(folder: Path, tmp_path: Path, generation: int) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    store = Store(folder)
    store.path(2).unlink()
    store.partial(2, generation).symlink_to(victim)
    (folder / "pictures").mkdir()
    (folder / "pictures/.0000002.txt").symlink_to(victim)
    (folder / "claims/00000/0000002.1.failed").symlink_to(victim)

    def draw(sample: torch.Tensor, path: Path) -> Path:
        path.with_suffix(".txt").write_text("drawn")
        return path.with_suffix(".txt")

    assert run(folder, picture=draw)[1] == [2]
    assert victim.read_text() == "precious"
    assert not store.path(2).is_symlink()
    assert (folder / "pictures/0000002.txt").read_text() == "drawn"


def test_a_host_of_any_name_can_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "\U0001f5a5中文" * 80 + "字" * 200)
    with Worker(tmp_path) as worker:
        assert len(os.fsencode(worker.path.name)) < 120
        assert worker.is_alive(worker.name)


# -------------------------------------------------------------------------- before it begins
@pytest.mark.parametrize("name", ["", "samples", "claims", "workers", "manifest", "pictures"])
def test_a_folder_that_cannot_be_written_is_found_before_sampling(
    tmp_path: Path, name: str
) -> None:
    place = tmp_path / "job" / name if name else tmp_path / "job"
    place.parent.mkdir(exist_ok=True)
    place.write_text("a file where a folder must be")
    with pytest.raises(InputError, match=r"cannot write the folder of the job .* is no folder"):
        run(tmp_path / "job")
    if name:
        assert os.listdir(tmp_path / "job") == [name]
