"""Callbacks observe a run and cannot interfere: control is a policy's job."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from erta_framework.console import make_console
from erta_framework.files import require_writable_folder, shorten_name
from erta_framework.session import StepTrace, Trace
from erta_framework.text import escape_line


@dataclass(frozen=True, slots=True)
class RunStart:
    """What is about to run: number of samples, batches and steps of each."""

    samples: int
    batches: int
    steps: int
    title: str


@dataclass(frozen=True, slots=True, eq=False)
class BatchEnd:
    """A finished batch; `samples` `[B, C, ...]` and `trace` are copies."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    samples: Tensor
    trace: Trace
    seconds: float


class Callback:
    """Base of callbacks; override what you want to see. Each gets frozen records or copies."""

    def on_run_start(self, run: RunStart) -> None:
        """A run begins."""

    def on_step(self, step: StepTrace) -> None:
        """A step is done."""

    def on_batch_end(self, batch: BatchEnd) -> None:
        """A batch is done."""

    def on_run_end(self, error: BaseException | None) -> None:
        """The run is over, also when it failed."""


class ProgressBar(Callback):
    """A progress bar over all steps: samples that are done, time that remains, network calls.

    A bar of 12 samples reads `sampling ━━━━ 3/12 samples 162/600 steps 0:00:09 left 0:00:24 ...`.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[done]}/{task.fields[samples]} samples"),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[calls]} network calls"),
            console=console or make_console(stderr=True),
        )
        self._task: TaskID | None = None
        self._calls = self._done = 0

    def on_run_start(self, run: RunStart) -> None:
        """Start the bar."""
        self._calls = self._done = 0
        total = run.batches * run.steps
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(
            escape_line(run.title), total=total, calls=0, done=0, samples=run.samples
        )
        self._progress.start()

    def on_step(self, step: StepTrace) -> None:
        """Advance by one step."""
        self._calls += sum(call.computed for call in step.calls)
        if self._task is not None:
            self._progress.update(self._task, advance=1, calls=self._calls)

    def on_batch_end(self, batch: BatchEnd) -> None:
        """Count the samples that are done."""
        self._done += len(batch.prompts)
        if self._task is not None:
            self._progress.update(self._task, done=self._done)

    def on_run_end(self, error: BaseException | None) -> None:
        """Stop the bar."""
        self._progress.stop()


class TraceLogger(Callback):
    """Writes one JSON line a step and one a batch.

    Example:
        >>> TraceLogger("runs/trace.jsonl")  # doctest: +SKIP
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: TextIO | None = None

    def on_run_start(self, run: RunStart) -> None:
        """Open the file for appending."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a", encoding="utf-8")
        self._write({"event": "run_start", **asdict(run)})

    def on_step(self, step: StepTrace) -> None:
        """Write the step."""
        self._write({"event": "step", **asdict(step)})

    def on_batch_end(self, batch: BatchEnd) -> None:
        """Write the batch: prompts, seeds and totals."""
        self._write(
            {
                "event": "batch_end",
                "request_id": batch.trace.request_id,
                "prompts": batch.prompts,
                "seeds": batch.seeds,
                "network_calls": batch.trace.network_calls,
                "reused_calls": batch.trace.reused_calls,
                "seconds": batch.seconds,
            }
        )

    def on_run_end(self, error: BaseException | None) -> None:
        """Close the file."""
        if self._file is not None:
            self._write({"event": "run_end", "error": None if error is None else repr(error)})
            self._file.close()
            self._file = None

    def _write(self, record: dict[str, object]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")


LONGEST = 200
"""Bytes of a picture's name, which leaves room for its ending."""


class PictureWriter(Callback):
    """Writes every sample through a function `(sample [C, ...], path without suffix) -> None`.

    `erta_framework.report.write_gif` is one for videos.
    """

    def __init__(self, folder: str | Path, write: Callable[[Tensor, Path], object]) -> None:
        self.folder = Path(folder)
        self._write = write

    def on_run_start(self, run: RunStart) -> None:
        """Refuse a folder that cannot be written to."""
        require_writable_folder(self.folder, "folder of pictures")

    def on_batch_end(self, batch: BatchEnd) -> None:
        """Write the samples of the batch."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for prompt, seed, sample in zip(batch.prompts, batch.seeds, batch.samples, strict=True):
            slug = "".join(c if c.isalnum() else "-" for c in prompt)[:60] or "empty"
            self._write(sample, self.folder / shorten_name(f"{seed:06d}-{slug}", LONGEST))


class Observers:
    """Calls several callbacks in order; a context manager around one run."""

    def __init__(self, callbacks: tuple[Callback, ...], run: RunStart) -> None:
        self._callbacks, self._run = callbacks, run

    def __enter__(self) -> Observers:
        for started, callback in enumerate(self._callbacks):
            try:
                callback.on_run_start(self._run)
            except BaseException as error:
                self._end(self._callbacks[:started], error)
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end(self._callbacks, error)

    @staticmethod
    def _end(callbacks: tuple[Callback, ...], error: BaseException | None) -> None:
        # all are called; an error of the run itself is never replaced by that of a callback
        first = error
        for callback in callbacks:
            try:
                callback.on_run_end(error)
            except Exception as second:
                if first is None:
                    first = second
                else:
                    first.add_note(f"{type(callback).__name__}.on_run_end raised: {second!r}")
        if error is None and first is not None:
            raise first

    def step(self, step: StepTrace) -> None:
        """Tell everyone of a step."""
        for callback in self._callbacks:
            callback.on_step(step)

    def batch(self, batch: BatchEnd) -> None:
        """Tell everyone of a batch."""
        for callback in self._callbacks:
            callback.on_batch_end(batch)
