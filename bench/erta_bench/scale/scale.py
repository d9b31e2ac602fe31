"""`erta bench scale`: what a second process gains, beside what the machine allows."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from erta_bench.core.report import Bench, Row, Value
from erta_framework.errors import ErtaError
from erta_framework.optional_dependencies import require_extra

WORKER = "erta_bench.scale.scale_worker"
KINDS = ("plain", "job")
START = 0.1
"""Seconds from telling the processes to the moment at which all of them start."""
COLUMNS = {
    "name": "",
    "processes": "ranks",
    "efficiency": "efficiency",
    "efficiency_processor": "cpu",
    "machine_limit": "limit",
    "collectives_per_step": "calls/step",
    "bytes_per_step": "bytes/step",
}
Told = dict[str, float]


class ScaleError(ErtaError):
    """A process of the benchmark failed or did not answer in time."""


class Process:
    """A process that imported everything and waits for commands; killed when it is late.

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

    def tell(self, order: Mapping[str, object]) -> None:
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

    def answer(self) -> Told:
        """What it answers.

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
        found: Told = json.loads(line)
        return found

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what it was told and will never read
                    pipe.close()


@contextmanager
def started(count: int, model: str, steps: int, limit: float) -> Iterator[list[Process]]:
    """Processes that are ready, and are gone afterwards whatever happens."""
    processes = [Process(rank, model, steps, limit) for rank in range(count)]
    try:
        for process in processes:
            process.answer()
        yield processes
    finally:
        for process in processes:
            process.close()


def timed(processes: Sequence[Process], kind: str, samples: int, folder: Path) -> Told:
    """Samples a second of all these processes together, and their processor seconds a sample."""
    order = {
        "kind": kind,
        "samples": samples,
        "world": len(processes),
        "folder": str(folder),
        "start": time.monotonic() + START,
    }
    for process in processes:
        process.tell(order)
    answers = [process.answer() for process in processes]
    return {
        "rate": sum(told["samples"] / told["seconds"] for told in answers),
        "processor": sum(told["processor_seconds"] for told in answers)
        / sum(told["samples"] for told in answers),
    }


def rows_of_speed(rounds: Sequence[Mapping[tuple[str, int], Told]], most: int) -> list[Row]:
    """A row for one process and one for `most`, from interleaved rounds.

    Each round gives its own ratios, so that what else the machine does weighs on all four runs of a
    round; the median over the rounds counts.
    """
    rows: list[Row] = []
    for count in (1, most):
        ours = [found["job", count]["rate"] / found["job", 1]["rate"] for found in rounds]
        machine = [found["plain", count]["rate"] / found["plain", 1]["rate"] for found in rounds]
        busy = [
            (found["job", 1]["processor"] / found["job", count]["processor"])
            / (found["plain", 1]["processor"] / found["plain", count]["processor"])
            for found in rounds
        ]
        efficiency = [one / other for one, other in zip(ours, machine, strict=True)]
        rows.append(
            {
                "name": "data-parallel job",
                "processes": count,
                "efficiency": statistics.median(efficiency),
                "efficiency_least": min(efficiency),
                "efficiency_most": max(efficiency),
                "efficiency_processor": statistics.median(busy),
                "machine_limit": statistics.median(machine) / count,
                "samples_per_second": median_of(rounds, "job", count, "rate"),
                "plain_per_second": median_of(rounds, "plain", count, "rate"),
                "processor_seconds": median_of(rounds, "job", count, "processor"),
                "plain_processor_seconds": median_of(rounds, "plain", count, "processor"),
                "rounds": len(rounds),
            }
        )
    return rows


def median_of(
    rounds: Sequence[Mapping[tuple[str, int], Told]], kind: str, count: int, key: str
) -> float:
    """The median of a number over the rounds."""
    return statistics.median(found[kind, count][key] for found in rounds)


def rows_of_traffic(model: str, steps: int, limit: float) -> list[Row]:
    """What two ranks send, counted at `torch.distributed`.

    Raises:
        ScaleError: The processes failed or took longer than the limit.
    """
    with tempfile.TemporaryDirectory(prefix="erta-scale-") as folder:
        launch = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
        command = [sys.executable, "-m", WORKER, "counted", folder, model, str(steps)]
        try:
            done = subprocess.run(
                [sys.executable, "-m", *launch, *command],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ScaleError(f"two ranks took more than {limit:g} s to count") from error
        if done.returncode:
            raise ScaleError(f"counting what two ranks send failed:\n{done.stderr[-4000:]}")
        told = [json.loads((Path(folder) / f"{k}.json").read_text("utf-8")) for k in (0, 1)]
    return [traffic(kind, [each[kind] for each in told], steps) for kind in told[0]]


def traffic(kind: str, told: Sequence[Mapping[str, int]], steps: int) -> Row:
    """A row of what each rank sends a step, after the first, which computes without asking.

    Raises:
        ScaleError: The ranks do not send alike.
    """
    first, *others = told
    for other in others:
        if other != first:
            raise ScaleError(f"the ranks do not send alike, {kind}: {first} and {other}")
    return {
        "name": kind,
        "processes": len(told),
        "collectives_per_step": first["collectives"] / (steps - 1),
        "bytes_per_step": first["bytes"] / (steps - 1),
        "collectives_at_the_start": first["collectives_at_the_start"],
        "bytes_at_the_start": first["bytes_at_the_start"],
    }


def scale(
    *,
    model: str = "shapes-wan",
    steps: int = 10,
    samples: int = 8,
    rounds: int = 7,
    processes: int = 2,
    limit: float = 300.0,
    command: str = "",
    progress: bool = False,
) -> Bench:
    """Measure data-parallel sampling with 1 and more processes, and count what ranks send.

    Args:
        model: Name of a model.
        steps: Steps of a sample.
        samples: Samples of each process in each round.
        rounds: Repetitions; the order of the runs alternates, and medians count.
        processes: The larger number of processes.
        limit: Seconds for each run of a process.
        command: Shown with the numbers.
        progress: Say on standard error what is done.

    Raises:
        ScaleError: A process failed or took longer than the limit.
    """
    console = Console(stderr=True)
    before = os.getloadavg()[0]
    found: list[dict[tuple[str, int], Told]] = []
    with (
        tempfile.TemporaryDirectory(prefix="erta-scale-") as place,
        started(processes, model, steps, limit) as fleet,
    ):
        for number in range(rounds):
            runs = [(kind, count) for count in (1, processes) for kind in KINDS]
            told = {}
            for kind, count in runs if number % 2 == 0 else reversed(runs):
                folder = Path(place) / f"{number}-{count}"
                told[kind, count] = timed(fleet[:count], kind, samples, folder)
            found.append(told)
            if progress:
                rates = ", ".join(f"{k} x{n} {v['rate']:.2f}/s" for (k, n), v in told.items())
                console.print(f"round {number + 1} of {rounds}: {rates}", highlight=False)
    rows = rows_of_speed(found, processes) + rows_of_traffic(model, steps, limit)
    settings: dict[str, Value] = {
        "model": model,
        "steps": steps,
        "samples": samples,
        "rounds": rounds,
        "threads_a_process": 1,
        "load_before": before,
        "load_after": os.getloadavg()[0],
    }
    return Bench(command, rows, COLUMNS, settings)


def scale_command(
    model: Annotated[str, typer.Option(help="Name of a bundled model.")] = "shapes-wan",
    steps: Annotated[int, typer.Option(min=2, help="Steps of a sample.")] = 10,
    samples: Annotated[int, typer.Option(min=4, help="Samples a process and round.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Repetitions; medians count.")] = 7,
    processes: Annotated[int, typer.Option(min=2, help="The larger number of processes.")] = 2,
    json: Annotated[Path | None, typer.Option("--json", help="File for the flat records.")] = None,
) -> None:
    """Data-parallel sampling with 1 and 2 processes, one thread each, and what ranks send.

    `machine_limit` is what a second process adds to a plain loop of the same network, without this
    framework, as a share of twice the speed; `efficiency` is what it adds to a job, as a share of
    that. Both are steady sampling, without starting and ending.
    """
    require_extra("lightning", extra="fabric", wanted_by="erta bench scale")
    bench = scale(
        model=model,
        steps=steps,
        samples=samples,
        rounds=rounds,
        processes=processes,
        progress=True,
        command=f"erta bench scale --model {model} --steps {steps} --samples {samples} "
        f"--rounds {rounds} --processes {processes}",
    )
    bench.show(path=json)
