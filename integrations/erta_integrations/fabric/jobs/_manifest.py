"""What is done, as JSON lines: one file a worker while it runs, one file for the job at its end."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from erta_framework.errors import InputError
from erta_framework.files import write_atomically
from erta_integrations.fabric.jobs._prompts import Item
from erta_integrations.fabric.jobs._store import Store, list_shards


class WorkerLog(contextlib.AbstractContextManager["WorkerLog"]):
    """One worker's lines, appended to `manifest/<worker>.jsonl`; nobody else writes to that file.

    Lost lines lose nothing. A sample is done when its file is there, and `write_manifest` reads
    what the lines do not say from the files.

    Args:
        folder: The job's folder.
        name: The worker's name.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / "manifest" / f"{name}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab", buffering=0)
        self._torn = False

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a line; a full disk is no reason to fail a sample that is done."""
        # after a line that was cut off, a newline keeps the next one apart from its remains
        line = b"\n" * self._torn + json.dumps(record).encode() + b"\n"
        try:
            self._torn = self._file.write(line) != len(line)
        except OSError:
            self._torn = True


class Tally:
    """Reads the lines of all workers; each `read` continues where the last one stopped.

    Args:
        folder: The job's folder.

    Attributes:
        done: The newest line of each sample that is done.
        failed: The error of each sample that failed and is not done since.
        seals: Size and digest of each sample's file, as often as it was made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "manifest"
        self._offsets: dict[Path, int] = {}
        self.done: dict[int, dict[str, Any]] = {}
        self.failed: dict[int, str] = {}
        self.seals: dict[int, set[tuple[int, str]]] = {}

    def forget(self, index: int) -> None:
        """Take a sample out whose file is not what was written."""
        self.done.pop(index, None)

    def read(self) -> list[dict[str, Any]]:
        """The new lines, those of one worker in order."""
        fresh: list[dict[str, Any]] = []
        for path in sorted(self._folder.glob("*.jsonl")):
            offset = self._offsets.get(path, 0)
            if path.is_file() and path.stat().st_size > offset:
                with path.open("rb") as file:
                    file.seek(offset)
                    # the last line may be half written: read it next time
                    whole, newline, _ = file.read().rpartition(b"\n")
                self._offsets[path] = offset + len(whole) + len(newline)
                fresh += parse_records(whole.split(b"\n"))
        for record in fresh:
            index = record["index"]
            if record["event"] == "done":
                self.done[index] = record
                self.failed.pop(index, None)
                if "sha256" in record:
                    self.seals.setdefault(index, set()).add((record["bytes"], record["sha256"]))
            elif index not in self.done:
                self.failed[index] = record["error"]
        return fresh


def parse_records(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """The records among lines; skips a line that a full disk or a kill cut off."""
    found = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            if is_record(record):
                found.append(record)
    return found


def is_record(record: Any) -> bool:
    """Whether a line is one that a worker writes; a stray file may hold any other."""
    if not isinstance(record, dict) or type(record.get("index")) is not int:
        return False
    if record.get("event") == "failed":
        return isinstance(record.get("error"), str)
    counts = [record.get(key) for key in ("network_calls", "branch_calls")]
    numbers = all(count is None or type(count) in (int, float) for count in counts)
    seal = [type(record[key]) for key in ("bytes", "sha256") if key in record]
    return record.get("event") == "done" and numbers and seal in ([], [int, str])


def describe(event: str, item: Item, **more: Any) -> dict[str, Any]:
    """The line of a sample that is `"done"`, `"failed"` or `"missing"`."""
    line = {"event": event, "index": item.index, "prompt": item.prompt, "seed": item.seed}
    return line | more


def describe_done(
    item: Item, store: Store, facts: Mapping[str, Any], **more: Any
) -> dict[str, Any]:
    """The line of a sample that is done, from the facts in its file."""
    trace = facts.get("trace", {})
    file = store.path(item.index).relative_to(store.folder.parent).as_posix()
    calls = {key: trace.get(key) for key in ("network_calls", "branch_calls")}
    return describe("done", item, file=file, **calls, **store.seal(item.index), **more)


def describe_file(item: Item, store: Store) -> dict[str, Any]:
    """The line of a sample of which only the file is left."""
    try:
        return describe_done(item, store, store.facts(item.index))
    except InputError as error:  # damaged since this run began; the next one makes it again
        return describe("failed", item, error=str(error))


def write_manifest(folder: Path, items: Sequence[Item], store: Store, tally: Tally) -> Path:
    """Write `manifest.jsonl`: every sample of the job in order, done, failed or missing."""
    tally.read()
    lines: list[dict[str, Any]] = []
    committed = set[int]().union(*map(store.committed, list_shards(len(items))))
    for item in items:
        if item.index in committed:
            known = tally.done.get(item.index)
            lines.append(known or describe_file(item, store))
        elif item.index in tally.failed:
            lines.append(describe("failed", item, error=tally.failed[item.index]))
        else:
            lines.append(describe("missing", item))
    path = folder / "manifest.jsonl"
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    write_atomically(path, data)
    return path
