"""What a second process gains, beside what the machine allows, and what ranks send."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from erta_bench.core import Bench, Row, Value
from erta_bench.scale._processes import WORKER, Answer, ScaleError, WorkerProcess, start_processes
from erta_framework.console import make_console

KINDS = ("plain", "job")
START = 0.1
"""Seconds from sending the command to the moment at which all processes start."""
COLUMNS = {
    "name": "",
    "processes": "ranks",
    "efficiency": "efficiency",
    "efficiency_processor": "cpu",
    "machine_limit": "limit",
    "collectives_per_step": "calls/step",
    "bytes_per_step": "bytes/step",
}


def time_processes(
    processes: Sequence[WorkerProcess], kind: str, samples: int, folder: Path
) -> Answer:
    """Samples a second of these processes together, and their processor seconds a sample."""
    order = {
        "kind": kind,
        "samples": samples,
        "world": len(processes),
        "folder": str(folder),
        "start": time.monotonic() + START,
    }
    for process in processes:
        process.send(order)
    answers = [process.read() for process in processes]
    return {
        "rate": sum(answer["samples"] / answer["seconds"] for answer in answers),
        "processor": sum(answer["processor_seconds"] for answer in answers)
        / sum(answer["samples"] for answer in answers),
    }


def make_speed_rows(rounds: Sequence[Mapping[tuple[str, int], Answer]], most: int) -> list[Row]:
    """A row for one process and one for `most`, from interleaved rounds.

    Each round gives its own ratios, since other load weighs on all four runs of a round. The median
    over the rounds counts.
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
                "samples_per_second": find_median(rounds, "job", count, "rate"),
                "plain_per_second": find_median(rounds, "plain", count, "rate"),
                "processor_seconds": find_median(rounds, "job", count, "processor"),
                "plain_processor_seconds": find_median(rounds, "plain", count, "processor"),
                "rounds": len(rounds),
            }
        )
    return rows


def find_median(
    rounds: Sequence[Mapping[tuple[str, int], Answer]], kind: str, count: int, key: str
) -> float:
    """The median of a number over the rounds."""
    return statistics.median(found[kind, count][key] for found in rounds)


def measure_traffic(model: str, steps: int, limit: float) -> list[Row]:
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
        answers = [json.loads((Path(folder) / f"{k}.json").read_text("utf-8")) for k in (0, 1)]
    return [make_traffic_row(kind, [each[kind] for each in answers], steps) for kind in answers[0]]


def make_traffic_row(kind: str, answers: Sequence[Mapping[str, int]], steps: int) -> Row:
    """A row of what each rank sends a step, after the first, which computes without asking.

    Raises:
        ScaleError: The ranks do not send alike.
    """
    first, *others = answers
    for other in others:
        if other != first:
            raise ScaleError(f"the ranks do not send alike, {kind}: {first} and {other}")
    return {
        "name": kind,
        "processes": len(answers),
        "collectives_per_step": first["collectives"] / (steps - 1),
        "bytes_per_step": first["bytes"] / (steps - 1),
        "collectives_at_the_start": first["collectives_at_the_start"],
        "bytes_at_the_start": first["bytes_at_the_start"],
    }


def measure_scale(
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
    console = make_console(stderr=True)
    before = os.getloadavg()[0]
    found: list[dict[tuple[str, int], Answer]] = []
    with (
        tempfile.TemporaryDirectory(prefix="erta-scale-") as place,
        start_processes(processes, model, steps, limit) as fleet,
    ):
        for number in range(rounds):
            runs = [(kind, count) for count in (1, processes) for kind in KINDS]
            answers = {}
            for kind, count in runs if number % 2 == 0 else reversed(runs):
                folder = Path(place) / f"{number}-{count}"
                answers[kind, count] = time_processes(fleet[:count], kind, samples, folder)
            found.append(answers)
            if progress:
                rates = ", ".join(f"{k} x{n} {v['rate']:.2f}/s" for (k, n), v in answers.items())
                console.print(f"round {number + 1} of {rounds}: {rates}", highlight=False)
    rows = make_speed_rows(found, processes) + measure_traffic(model, steps, limit)
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
