"""The progress of a job over all its workers: a bar, or JSON lines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from erta_framework.console import make_console
from erta_integrations.fabric.jobs._manifest import Tally
from erta_integrations.fabric.jobs._workers import repeat_in_background


@dataclass(frozen=True, slots=True)
class JobProgress:
    """How far a job is.

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


class ProgressWatch:
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
        self._tally, self._total, self._committed, self._clock = tally, total, committed, clock
        tally.read()
        self._first, self._start = len(tally.done), clock()

    def look(self) -> tuple[JobProgress, list[dict[str, Any]]]:
        """The progress now, and the workers' new lines."""
        fresh = self._tally.read()
        seconds, new = self._clock() - self._start, len(self._tally.done) - self._first
        rate = new / seconds if new and seconds > 0 else None
        # files at the start, and lines since then: earlier lines may have been lost
        done, failed = min(self._total, self._committed + new), len(self._tally.failed)
        left = self._total - done - failed
        eta = None if rate is None else left / rate
        return JobProgress(self._total, done, failed, rate, eta, *mean_effort(self._tally)), fresh


def mean_effort(tally: Tally) -> tuple[float | None, float | None]:
    """Mean network calls a sample, and branch calls asked for over network calls made."""
    known = [r for r in tally.done.values() if r.get("network_calls") and r.get("branch_calls")]
    if not known:
        return None, None
    calls = sum(r["network_calls"] for r in known)
    return calls / len(known), sum(r["branch_calls"] for r in known) / calls


@contextmanager
def show_progress(
    watch: ProgressWatch,
    *,
    json_lines: bool = False,
    console: Console | None = None,
    every: float = 1.0,
) -> Iterator[None]:
    """Show the progress from a thread while this process samples.

    Args:
        watch: Follows the workers.
        json_lines: Write JSON lines instead of a bar.
        console: Where to; standard error for a bar, standard output for JSON by default.
        every: Least seconds between two looks.
    """
    console = console or make_console(stderr=not json_lines, soft_wrap=True)
    columns = (BarColumn(30), MofNCompleteColumn(), TextColumn("{task.fields[text]}", markup=False))
    bar = Progress(TextColumn("sampling"), *columns, console=console, auto_refresh=False)
    task = bar.add_task("sampling", total=None, text="")

    def show(always: bool = False) -> None:
        progress, fresh = watch.look()
        if not json_lines:
            bar.update(
                task, total=progress.total, completed=progress.done, text=format_progress(progress)
            )
            bar.refresh()
        elif fresh or always:
            for record in [*fresh, {"event": "progress", **asdict(progress)}]:
                console.print(json.dumps(record))

    with nullcontext() if json_lines else bar:
        show(always=True)
        try:
            # looking at a thousand workers takes a while: a twentieth of the time at most
            with repeat_in_background(show, every, rest=20):
                yield
        finally:
            show()


def format_progress(progress: JobProgress) -> str:
    """The numbers beside the bar."""
    parts = []
    if progress.failed:
        parts.append(f"{progress.failed} failed")
    if progress.rate is not None:
        parts.append(f"{progress.rate:.2g} a second")
    if progress.eta_seconds is not None:
        parts.append(f"{timedelta(seconds=round(progress.eta_seconds))} left")
    if progress.network_calls is not None:
        parts.append(
            f"{progress.network_calls:.1f} network calls a sample, {progress.speedup:.2f}x"
        )
    return ", ".join(parts)
