"""Processes of a benchmark, which wait for commands and answer them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from erta_framework.errors import ErtaError

WORKER = "erta_bench.scale._worker"
Answer = dict[str, float]
"""What a process measured, by name."""


class ScaleError(ErtaError):
    """A process of the benchmark failed or did not answer in time."""


class WorkerProcess:
    """A process that has imported everything and waits for commands; killed when it is late.

    Args:
        rank: Its number.
        model: Name of a model.
        steps: Steps of a sample.
        limit: Seconds for an answer.
    """

    def __init__(self, rank: int, model: str, steps: int, limit: float) -> None:
        self.limit = limit
        self._process = subprocess.Popen(
            [sys.executable, "-m", WORKER, "timed", str(rank), model, str(steps)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
        )

    def send(self, order: Mapping[str, object]) -> None:
        """Send a command.

        Raises:
            ScaleError: The process is gone.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise ScaleError(f"a process of the benchmark is gone ({error}); see above") from error

    def read(self) -> Answer:
        """Read its answer.

        Raises:
            ScaleError: It failed, or took longer than the limit.
        """
        assert self._process.stdout is not None
        watch = threading.Timer(self.limit, self._process.kill)
        watch.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watch.cancel()
        if not line:
            raise ScaleError(
                f"a process of the benchmark ended or took more than {self.limit:g} s; see above"
            )
        found: Answer = json.loads(line)
        return found

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was sent and will never be read
                    pipe.close()


@contextmanager
def start_processes(
    count: int, model: str, steps: int, limit: float
) -> Iterator[list[WorkerProcess]]:
    """Start processes, wait until they are ready, and end them whatever happens."""
    processes = [WorkerProcess(rank, model, steps, limit) for rank in range(count)]
    try:
        for process in processes:
            process.read()
        yield processes
    finally:
        for process in processes:
            process.close()
