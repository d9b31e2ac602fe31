"""How a job comes along, over all its workers: a bar, or JSON lines."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from erta_integrations.fabric.jobs.manifest import Tally


@dataclass(frozen=True, slots=True)
class State:
    """How a job stands.

    Attributes:
        total: Samples of the job.
        done: Samples that are done, by any worker of any run.
        failed: Samples that failed and are not done.
        rate: Samples a second since this run began, over all workers.
        eta_seconds: Seconds until all are done at this rate.
        network_calls: Mean network calls of a sample that is done.
        speedup: Branch calls asked for over network calls made.
    """

    total: int
    done: int
    failed: int
    rate: float | None
    eta_seconds: float | None
    network_calls: float | None
    speedup: float | None


class Watch:
    """Follows what the workers log.

    Args:
        tally: Reads their lines.
        total: Samples of the job.
        committed: Samples whose files were there at the start.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        tally: Tally,
        total: int,
        committed: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tally, self._total, self._clock = tally, total, clock
        tally.read()
        self._unlogged = max(0, committed - len(tally.done))
        self._first = len(tally.done)
        self._start = clock()

    def look(self) -> tuple[State, list[dict[str, Any]]]:
        """How the job stands now, and the lines that are new."""
        fresh = self._tally.read()
        logged = len(self._tally.done)
        seconds = self._clock() - self._start
        new = logged - self._first
        rate = new / seconds if new and seconds > 0 else None
        done = min(self._total, logged + self._unlogged)
        left = self._total - done - len(self._tally.failed)
        calls, speedup = effort(self._tally)
        state = State(
            total=self._total,
            done=done,
            failed=len(self._tally.failed),
            rate=rate,
            eta_seconds=None if rate is None else left / rate,
            network_calls=calls,
            speedup=speedup,
        )
        return state, fresh


def effort(tally: Tally) -> tuple[float | None, float | None]:
    """Mean network calls a sample, and branch calls asked for over network calls made."""
    told = [r for r in tally.done.values() if r.get("network_calls") and r.get("branch_calls")]
    if not told:
        return None, None
    calls = sum(r["network_calls"] for r in told)
    return calls / len(told), sum(r["branch_calls"] for r in told) / calls


class Reporter:
    """Shows how a job stands from a thread of its own, while this process samples.

    Args:
        watch: Follows the workers.
        json_lines: Write JSON lines instead of a bar.
        console: Where to; standard error for a bar, standard output for JSON by default.
        every: Least seconds between two looks.
    """

    def __init__(
        self,
        watch: Watch,
        *,
        json_lines: bool = False,
        console: Console | None = None,
        every: float = 1.0,
    ) -> None:
        self._watch, self._json, self._every = watch, json_lines, every
        self._console = console or Console(stderr=not json_lines, highlight=False, soft_wrap=True)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="erta-progress", daemon=True)
        self._last: State | None = None
        self._progress = Progress(
            TextColumn("sampling"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            console=self._console,
            auto_refresh=False,
        )
        self._task = self._progress.add_task("sampling", total=None, text="")

    def __enter__(self) -> Reporter:
        if not self._json:
            self._progress.start()
        self._show()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._show()
        if not self._json:
            self._progress.stop()

    def _run(self) -> None:
        wait = self._every
        while not self._stop.wait(wait):
            clock = time.monotonic()
            self._show()
            # looking at a thousand workers takes a while: spend a twentieth of the time on it
            wait = max(self._every, 20 * (time.monotonic() - clock))

    def _show(self) -> None:
        state, fresh = self._watch.look()
        if not self._json:
            self._progress.update(
                self._task, total=state.total, completed=state.done, text=spelled(state)
            )
            self._progress.refresh()
            return
        for record in fresh:
            self._line(record)
        if fresh or self._last is None:
            self._line({"event": "progress", **asdict(state)})
        self._last = state

    def _line(self, record: dict[str, Any]) -> None:
        self._console.print(json.dumps(record), markup=False)


def spelled(state: State) -> str:
    """The numbers beside the bar."""
    parts = []
    if state.failed:
        parts.append(f"{state.failed} failed")
    if state.rate is not None:
        parts.append(f"{state.rate:.2g} a second")
    if state.eta_seconds is not None:
        minutes, seconds = divmod(round(state.eta_seconds), 60)
        parts.append(f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} left")
    if state.network_calls is not None and state.speedup is not None:
        parts.append(f"{state.network_calls:.1f} network calls a sample, {state.speedup:.2f}x")
    return ", ".join(parts)
