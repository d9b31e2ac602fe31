"""What is done, as JSON lines: one file a worker while it runs, one file for the job at its end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from erta_integrations.fabric.jobs.division import SHARD
from erta_integrations.fabric.jobs.prompts import Item
from erta_integrations.fabric.jobs.store import Store, write_atomically


class Log:
    """A worker's own lines in `manifest/<worker>.jsonl`; nobody else writes to that file.

    Losing lines loses nothing: a sample is done when its file is there, and `finish` reads what
    the lines do not say from the files themselves.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / "manifest" / f"{name}.jsonl"
        self._file: BinaryIO | None = None
        self._torn = False

    def __enter__(self) -> Log:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab", buffering=0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a line; a full disk is no reason to fail a sample that is done."""
        line = json.dumps(record).encode() + b"\n"
        if self._file is None:
            return
        try:
            written = self._file.write(b"\n" + line if self._torn else line)
            self._torn = written != len(line) + self._torn
        except OSError:
            self._torn = True


class Tally:
    """Reads what every worker's lines add since the last time.

    Attributes:
        done: The newest line of each sample that is done.
        failed: The error of each sample that failed and is not done since.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "manifest"
        self._offsets: dict[str, int] = {}
        self.done: dict[int, dict[str, Any]] = {}
        self.failed: dict[int, str] = {}

    def read(self) -> list[dict[str, Any]]:
        """The new lines, those of one worker in order."""
        fresh: list[dict[str, Any]] = []
        try:
            names = sorted(os.listdir(self._folder))
        except FileNotFoundError:
            return fresh
        for name in names:
            path = self._folder / name
            offset = self._offsets.get(name, 0)
            if not name.endswith(".jsonl") or path.stat().st_size <= offset:
                continue
            with path.open("rb") as file:
                file.seek(offset)
                whole, newline, _ = file.read().rpartition(b"\n")
            self._offsets[name] = offset + len(whole) + len(newline)
            fresh.extend(parsed(whole.split(b"\n")))
        for record in fresh:
            self._take(record)
        return fresh

    def _take(self, record: dict[str, Any]) -> None:
        index = int(record["index"])
        if record["event"] == "done":
            self.done[index] = record
            self.failed.pop(index, None)
        elif index not in self.done:
            self.failed[index] = str(record["error"])


def parsed(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """The records among lines; one that a full disk or a kill cut off is passed over."""
    found = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.get("event") in ("done", "failed"):
            found.append(record)
    return found


def done_record(item: Item, store: Store, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The line of a sample that is done, from what its file says."""
    trace = facts.get("trace", {})
    return {
        "event": "done",
        "index": item.index,
        "prompt": item.prompt,
        "seed": item.seed,
        "file": store.path(item.index).relative_to(store.folder.parent).as_posix(),
        "network_calls": trace.get("network_calls"),
        "branch_calls": trace.get("branch_calls"),
    }


def finish(folder: Path, items: Iterable[Item], store: Store, tally: Tally) -> Path:
    """Write `manifest.jsonl`: every sample of the job in order, done, failed or missing."""
    tally.read()
    lines: list[dict[str, Any]] = []
    committed: dict[int, set[int]] = {}
    for item in items:
        shard = item.index // SHARD
        if shard not in committed:
            committed[shard] = store.committed(shard)
        if item.index in committed[shard]:
            known = tally.done.get(item.index)
            lines.append(known or done_record(item, store, store.facts(item.index)))
            continue
        state = {"event": "missing", "index": item.index, "prompt": item.prompt, "seed": item.seed}
        if item.index in tally.failed:
            state |= {"event": "failed", "error": tally.failed[item.index]}
        lines.append(state)
    path = folder / "manifest.jsonl"
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    write_atomically(path, data, folder / f".manifest.{os.getpid()}.partial")
    return path
