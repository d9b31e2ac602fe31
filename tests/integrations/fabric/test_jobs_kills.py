"""Real processes that are killed at random moments: nothing lost, nothing twice, nothing torn."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

from erta_framework.errors import InputError
from erta_framework.jobs import JobConfig, JobRequest, Summary
from erta_integrations.fabric.jobs import Item, SampledItem, Store, _runner, _store, run_job

LIMIT = 60.0
"""Seconds after which whatever a test started is killed."""

ROUNDS = [*range(4), *(pytest.param(k, marks=pytest.mark.slow) for k in range(4, 14))]


class Toy:
    """Samples numbers; says in a file what it begins and what it made."""

    known = ("scale",)

    def __init__(self, log: Path, seconds: float = 0.0, bad: Sequence[int] = ()) -> None:
        self.log, self.seconds, self.bad = log, seconds, bad

    def identity(self):
        return {"model": "toy"}

    def check(self, overrides):
        return None

    def note(self, word: str, items: Sequence[Item]) -> None:
        handle = os.open(self.log, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
        os.write(handle, "".join(f"{word} {item.index}\n" for item in items).encode())
        os.close(handle)

    def sample(self, items: Sequence[Item]) -> list[SampledItem]:
        self.note("begin", items)
        time.sleep(self.seconds * len(items))
        broken = [item.index for item in items if item.index in self.bad]
        if broken:
            raise ValueError(f"cannot sample {broken}")
        return [
            SampledItem(
                {"sample": expected(item)}, {"index": item.index, "trace": {}}, self.seconds
            )
            for item in items
        ]


def expected(item: Item) -> torch.Tensor:
    return torch.full((64,), item.seed + item.overrides.get("scale", 0), dtype=torch.float64)


def counts(log: Path) -> Counter[int]:
    """How often each sample was begun."""
    return Counter(int(line.split()[1]) for line in log.read_text().splitlines())


def fork(function: Callable[[], object]) -> int:
    """The number of a process that runs a function and ends with 0, or 70 if it raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of pytest, none of ours
        child = os.fork()
    if child:
        return child
    code = 70
    try:
        function()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def await_all(children: Sequence[int]) -> list[int]:
    """How they ended, as `waitpid` says; those that take too long are killed."""
    end = time.monotonic() + LIMIT
    ended = []
    for child in children:
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                ended.append(os.waitstatus_to_exitcode(status))
                break
            if time.monotonic() > end:
                for other in children:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(other, signal.SIGKILL)
                pytest.fail(f"process {child} took more than {LIMIT} s")
            time.sleep(0.005)
    return ended


def take_part(folder: Path, work: Toy, count: int, position=(0, 1), **job) -> Summary:
    request = JobRequest(
        prompts=[f"prompt {k}" for k in range(count)],
        output=folder,
        resume=True,
        quiet=True,
        job=JobConfig(**job),
    )
    return run_job(request, work, position)


def check_outputs(folder: Path, count: int) -> None:
    """Every sample is there once, whole and right, and the manifest says so."""
    store = Store(folder)
    for index in range(count):
        assert torch.equal(store.load(index)["sample"], expected(Item(index, "", index)))
        assert store.facts(index)["index"] == index
    files = [p.name for p in folder.rglob("*") if p.is_file() and p.parent.parent == store.folder]
    assert sorted(f for f in files if not f.startswith(".")) == [
        f"{k:07d}.safetensors" for k in range(count)
    ]
    lines = [json.loads(x) for x in (folder / "manifest.jsonl").read_text().splitlines()]
    assert [(x["index"], x["event"]) for x in lines] == [(k, "done") for k in range(count)]


# ------------------------------------------------------------------------------------ kills
@pytest.mark.parametrize("round_", ROUNDS)
def test_one_killed_rank_is_made_up_for_by_the_others(tmp_path, round_):
    chance, count = random.Random(round_), 30
    work = Toy(tmp_path / "log", seconds=0.01)
    ranks = [
        fork(partial(take_part, tmp_path / "job", work, count, (rank, 3))) for rank in range(3)
    ]
    victim = 1 + chance.randrange(2)
    time.sleep(chance.uniform(0.0, 0.25))
    os.kill(ranks[victim], signal.SIGKILL)
    ended = await_all(ranks)
    assert ended[0] == 0
    check_outputs(tmp_path / "job", count)
    # no more is begun twice than the one sample that the victim held
    assert sum(counts(work.log).values()) <= count + 1


@pytest.mark.parametrize("round_", ROUNDS)
def test_all_ranks_killed_again_and_again(tmp_path, round_):
    chance, count = random.Random(100 + round_), 30
    work = Toy(tmp_path / "log", seconds=0.01)
    store, kills = Store(tmp_path / "job"), 0
    for _ in range(4):
        before, done = counts_or_none(work.log), store.committed(0)
        ranks = [
            fork(partial(take_part, tmp_path / "job", work, count, (rank, 3))) for rank in range(3)
        ]
        time.sleep(chance.uniform(0.02, 0.12))
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, signal.SIGKILL)
        kills += await_all(ranks).count(-signal.SIGKILL)
        # what was done is not begun again
        assert {k: counts_or_none(work.log)[k] for k in done} == {k: before[k] for k in done}
        for index in store.committed(0):
            assert torch.equal(store.load(index)["sample"], expected(Item(index, "", index)))
    summary = take_part(tmp_path / "job", work, count)
    assert summary.complete
    check_outputs(tmp_path / "job", count)
    assert sum(counts(work.log).values()) <= count + kills


def counts_or_none(log: Path) -> Counter[int]:
    return counts(log) if log.exists() else Counter()


def half_written(handle: int) -> None:
    os.ftruncate(handle, os.fstat(handle).st_size // 2)
    os.kill(os.getpid(), signal.SIGKILL)


def before_the_rename(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after_the_rename(real: Callable[..., None], *arguments: object) -> None:
    real(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("moment", ["half written", "before the rename", "after the rename"])
def test_killed_in_the_middle_of_a_write(tmp_path, moment):
    work, folder, count = Toy(tmp_path / "log"), tmp_path / "job", 5

    def die() -> None:
        real, written = _store.os.replace, []

        def replace(source, target):
            if target.suffix != ".safetensors":
                return real(source, target)
            written.append(target)
            if len(written) < 3:
                return real(source, target)
            if moment == "after the rename":
                return after_the_rename(real, source, target)
            return before_the_rename()

        def fsync(handle):
            if len(written) == 2 and moment == "half written":
                half_written(handle)

        _store.os.replace = replace
        if moment == "half written":
            _store.os.fsync = fsync
        take_part(folder, work, count)

    assert await_all([fork(die)]) == [-signal.SIGKILL]
    torn = list(folder.rglob("*.partial"))
    done = Store(folder).committed(0)
    if moment == "after the rename":
        assert (len(done), torn) == (3, [])
    else:
        assert (len(done), [t.name for t in torn]) == (2, [".0000002.0.partial"])
    assert take_part(folder, work, count).complete
    check_outputs(folder, count)
    assert list(folder.rglob("*.partial")) == []
    again = 0 if moment == "after the rename" else 1
    assert sum(counts(work.log).values()) == count + again
    assert counts(work.log)[2] == 1 + again


# --------------------------------------------------------------------------------- failures
def test_a_prompt_that_fails_stops_no_other(tmp_path):
    work = Toy(tmp_path / "log", bad=(1, 4))
    summary = take_part(tmp_path / "job", work, 6)
    assert (summary.done, summary.complete) == (4, False)
    assert summary.failed == (
        (1, "ValueError: cannot sample [1]"),
        (4, "ValueError: cannot sample [4]"),
    )
    lines = [json.loads(x) for x in (tmp_path / "job/manifest.jsonl").read_text().splitlines()]
    assert [x["event"] for x in lines] == ["done", "failed", "done", "done", "failed", "done"]
    assert lines[4]["error"] == "ValueError: cannot sample [4]"
    # what comes later tries them again, and nothing else
    work.bad = (4,)
    summary = take_part(tmp_path / "job", work, 6)
    assert [index for index, _ in summary.failed] == [4]
    assert counts(work.log) == Counter({0: 1, 1: 2, 2: 1, 3: 1, 4: 2, 5: 1})
    work.bad = ()
    assert take_part(tmp_path / "job", work, 6).complete
    check_outputs(tmp_path / "job", 6)


def test_a_prompt_that_fails_in_a_batch_spoils_only_itself(tmp_path):
    work = Toy(tmp_path / "log", bad=(2,))
    summary = take_part(tmp_path / "job", work, 8, batch_size=4)
    assert (summary.done, [index for index, _ in summary.failed]) == (7, [2])
    assert counts(work.log) == Counter(
        {**dict.fromkeys(range(4), 2), **dict.fromkeys(range(4, 8), 1)}
    )


def test_a_process_that_lost_its_device_leaves_the_rest_to_others(tmp_path):
    class Lost(Toy):
        def sample(self, items):
            made = super().sample(items)
            if items[0].index == 1:
                raise RuntimeError("CUDA error: device-side assert triggered")
            return made

    work = Lost(tmp_path / "log")
    with pytest.raises(RuntimeError, match="CUDA error"):
        take_part(tmp_path / "job", work, 4)
    assert counts(work.log) == Counter({0: 1, 1: 1})  # it does not fail the others one by one
    said = json.loads((tmp_path / "job/claims/00000/0000001.0.failed").read_text())
    assert said["error"] == "RuntimeError: CUDA error: device-side assert triggered"
    assert take_part(tmp_path / "job", Toy(work.log), 4).complete
    check_outputs(tmp_path / "job", 4)


def test_settings_divide_a_batch(tmp_path):
    path = tmp_path / "prompts.jsonl"
    scales = [0, 5, 0, 5, 5]
    path.write_text("".join(json.dumps({"prompt": "x", "scale": s}) + "\n" for s in scales))
    sizes = []

    class Sized(Toy):
        def sample(self, items):
            sizes.append([item.index for item in items])
            return super().sample(items)

    request = JobRequest(
        prompts=path, output=tmp_path / "job", quiet=True,
        job=JobConfig(batch_size=5),
    )  # fmt: skip
    assert run_job(request, Sized(tmp_path / "log")).complete
    assert sorted(sizes) == [[0, 2], [1, 3, 4]]
    assert Store(tmp_path / "job").load(3)["sample"][0] == 3 + 5


def full_at(index: int) -> Callable[..., Path]:
    """A `Store.write` for which there is no space at one sample, as far as the disk says."""
    real = Store.write

    def write(self, number, generation, tensors, facts):
        if number == index:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, number, generation, tensors, facts)

    return write


def test_no_space_for_one_sample(tmp_path, monkeypatch):
    work = Toy(tmp_path / "log")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", full_at(2))
        summary = take_part(tmp_path / "job", work, 5)
    assert (summary.done, len(summary.failed)) == (4, 1)
    assert "no space left for" in summary.failed[0][1]
    assert "0000002.safetensors (512 bytes of tensors" in summary.failed[0][1]
    assert "free some space, then run again with --resume" in summary.failed[0][1]
    assert take_part(tmp_path / "job", work, 5).complete
    check_outputs(tmp_path / "job", 5)
    assert counts(work.log) == Counter({0: 1, 1: 1, 2: 2, 3: 1, 4: 1})


def test_a_full_disk_stops_the_worker_and_keeps_what_is_done(tmp_path, monkeypatch):
    work = Toy(tmp_path / "log")

    def no_failures(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", full_at(2))
        patch.setattr(_runner.Claims, "fail", no_failures)
        usage = _runner.shutil.disk_usage(tmp_path)._replace(free=100)
        patch.setattr(_runner.shutil, "disk_usage", lambda _: usage)
        summary = take_part(tmp_path / "job", work, 5)
    assert (summary.done, [index for index, _ in summary.failed]) == (2, [2])
    assert "100 bytes free" in summary.failed[0][1]
    assert counts(work.log) == Counter({0: 1, 1: 1, 2: 1})  # no work is done for nothing
    assert take_part(tmp_path / "job", work, 5).complete
    check_outputs(tmp_path / "job", 5)
    assert sum(counts(work.log).values()) == 6


# ---------------------------------------------------------------------------------- others
def test_one_that_was_taken_for_dead_does_not_write(tmp_path):
    folder = tmp_path / "job"

    class Overtaken(Toy):
        def sample(self, items):
            made = super().sample(items)
            if items[0].index == 0:
                (folder / "claims/00000/0000000.1").touch()
            return made

    summary = take_part(folder, Overtaken(tmp_path / "log"), 2, (1, 2))  # does not stay
    assert Store(folder).committed(0) == {1}
    assert summary.failed == ()
    # nobody signed the newer claim, so it is free once it is old
    os.utime(folder / "claims/00000/0000000.1", (0, 0))
    assert take_part(folder, Toy(tmp_path / "log"), 2).complete
    check_outputs(folder, 2)


def test_outputs_without_claims_are_not_made_again(tmp_path):
    work = Toy(tmp_path / "log")
    take_part(tmp_path / "job", work, 4)
    for path in (tmp_path / "job/claims").rglob("*.0"):
        path.unlink()
    Store(tmp_path / "job").path(3).unlink()
    assert take_part(tmp_path / "job", work, 4).complete
    assert counts(work.log) == Counter({0: 1, 1: 1, 2: 1, 3: 2})


def test_a_rank_that_cannot_begin_stops_all(tmp_path):
    request = JobRequest(prompts=["a"], output=tmp_path / "job", quiet=True)
    said = []

    def agree(fine):
        said.append(fine)
        return False

    work = Toy(tmp_path / "log")
    with pytest.raises(InputError, match="another rank cannot begin"):
        run_job(request, work, (1, 2), agree)
    assert not (tmp_path / "job").exists()
    with pytest.raises(InputError, match="another rank cannot begin"):
        run_job(request, work, (0, 2), agree)
    with pytest.raises(InputError, match="holds a job already; give --resume"):
        run_job(request, work, (0, 2), agree)
    assert said == [True, True, False]
    assert not work.log.exists()
