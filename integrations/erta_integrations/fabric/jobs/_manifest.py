"""What is done, as JSON lines: one file a worker while it runs, one file for the job at its end."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from erta_integrations.fabric.jobs._prompts import Item
from erta_integrations.fabric.jobs._store import Store, list_shards, write_atomically


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
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "manifest"
        self._offsets: dict[Path, int] = {}
        self.done: dict[int, dict[str, Any]] = {}
        self.failed: dict[int, str] = {}

    def read(self) -> list[dict[str, Any]]:
        """The new lines, those of one worker in order."""
        fresh: list[dict[str, Any]] = []
        for path in sorted(self._folder.glob("*.jsonl")):
            offset = self._offsets.get(path, 0)
            if path.stat().st_size > offset:
                with path.open("rb") as file:
                    file.seek(offset)
                    # the last line may be half written: read it next time
                    whole, newline, _ = file.read().rpartition(b"\n")
                self._offsets[path] = offset + len(whole) + len(newline)
                fresh += parse_records(whole.split(b"\n"))
        for record in fresh:
            index = int(record["index"])
            if record["event"] == "done":
                self.done[index] = record
                self.failed.pop(index, None)
            elif index not in self.done:
                self.failed[index] = str(record["error"])
        return fresh


def parse_records(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """The records among lines; skips a line that a full disk or a kill cut off."""
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and record.get("event") in ("done", "failed"):
                found.append(record)
    return found


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
    return describe("done", item, file=file, **calls, **more)


def write_manifest(folder: Path, items: Sequence[Item], store: Store, tally: Tally) -> Path:
    """Write `manifest.jsonl`: every sample of the job in order, done, failed or missing."""
    tally.read()
    lines: list[dict[str, Any]] = []
    committed = set[int]().union(*map(store.committed, list_shards(len(items))))
    for item in items:
        if item.index in committed:
            known = tally.done.get(item.index)
            lines.append(known or describe_done(item, store, store.facts(item.index)))
        elif item.index in tally.failed:
            lines.append(describe("failed", item, error=tally.failed[item.index]))
        else:
            lines.append(describe("missing", item))
    path = folder / "manifest.jsonl"
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    write_atomically(path, data, folder / f".manifest.{os.getpid()}.partial")
    return path
