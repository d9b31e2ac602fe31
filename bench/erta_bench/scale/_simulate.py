"""Simulates jobs of many ranks, and checks that nothing is lost; what they cost the file system."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from erta_bench.core import Bench, Row, Value
from erta_bench.scale._simulated_job import Job, JobOutcome, Scenario, SimulationError
from erta_bench.setting import time_call
from erta_framework.console import make_console
from erta_integrations.fabric.jobs import (
    Item,
    Store,
    Tally,
    count_committed,
    load_items,
    write_manifest,
)

COLUMNS = {
    "name": "",
    "deaths": "deaths",
    "begun_again": "again",
    "idle": "idle",
    "idle_fixed": "fixed",
    "operations": "files",
    "peak": "peak",
    "largest_folder": "folder",
    "claim_ms": "claim",
}


def simulate_job(scenario: Scenario, folder: Path) -> Row:
    """Simulate one job in an empty folder, check it, and measure what it took.

    Raises:
        SimulationError: A sample is missing, was made twice, begun again without need, or torn.
    """
    prompts = folder.parent / f"{folder.name}.jsonl"
    lines = (json.dumps({"prompt": f"prompt {k}"}) + "\n" for k in range(scenario.samples))
    prompts.write_text("".join(lines), encoding="utf-8")
    items, read = time_call(lambda: load_items(prompts, scenario.seed, ()))
    outcome, real = time_call(lambda: Job(scenario, folder, items).run())
    tally = Tally(folder)
    _, tallied = time_call(tally.read)
    _, finished = time_call(lambda: write_manifest(folder, items, Store(folder), tally))
    require_whole(outcome, folder, items)
    files, largest = measure_folder(folder)
    claims = sorted(seconds for rank in outcome.ranks for seconds in rank.claim_seconds)
    again = sum(outcome.interrupted.values())
    return {
        "name": f"{scenario.ranks} ranks" + (", failures" if scenario.failures else ""),
        "ranks": scenario.ranks,
        "failures": scenario.failures,
        "samples": scenario.samples,
        "processes": len(outcome.ranks),
        "deaths": outcome.deaths,
        "lost": len(items) - count_committed(Store(folder), len(items)),
        "made_twice": sum(n - 1 for n in count_outputs(outcome).values()),
        "begun_again": again,
        "minutes": outcome.makespan / 60,
        "idle": compute_idle_share(outcome.makespan, outcome.ideal),
        "idle_fixed": compute_idle_share(outcome.fixed, outcome.ideal),
        "operations": sum(outcome.calls.counts.values()) / scenario.samples,
        **{f"{kind}_a_sample": n / scenario.samples for kind, n in outcome.calls.counts.items()},
        "peak": max(outcome.calls.seconds.values()),
        "mean_a_second": sum(outcome.calls.seconds.values()) / max(1.0, outcome.makespan),
        "largest_folder": largest,
        "files": files,
        "claim_ms": 1e3 * statistics.median(claims),
        "claim_ms_p99": 1e3 * claims[int(0.99 * (len(claims) - 1))],
        "claim_ms_most": 1e3 * claims[-1],
        "prompts_ms": 1e3 * read.wall,
        "progress_ms": 1e3 * tallied.wall,
        "finish_ms": 1e3 * finished.wall,
        "real_seconds": real.wall,
    }


def require_whole(outcome: JobOutcome, folder: Path, items: Sequence[Item]) -> None:
    """Check that a job is complete, and that no work was done without need.

    Raises:
        SimulationError: Says what is wrong, with the first samples that show it.
    """
    store = Store(folder)
    lines = [json.loads(x) for x in (folder / "manifest.jsonl").read_text("utf-8").splitlines()]
    said = [line["index"] for line in lines if line["event"] == "done"]
    found = {
        "are missing": [item.index for item in items if not store.has(item.index)],
        "are torn": [
            item.index
            for item in items
            if store.has(item.index) and store.load(item.index)["sample"].tolist() != [item.seed]
        ],
        "were made twice": [index for index, n in count_outputs(outcome).items() if n > 1],
        "were begun again without need": [
            index for index, n in outcome.began.items() if n != 1 + outcome.interrupted[index]
        ],
        "are not in the manifest once": [] if said == [i.index for i in items] else said,
        "left a partial file": [
            int(path.name.split(".")[1]) for path in store.folder.glob("*/.*.partial")
        ],
    }
    for what, indices in found.items():
        if indices:
            raise SimulationError(
                f"{len(indices)} samples of {len(items)} {what}, such as {indices[:5]}; the job is "
                f"in {folder}"
            )
    if count_committed(store, len(items)) != len(items):
        raise SimulationError(f"{folder} holds other outputs than those of the job")


def count_outputs(outcome: JobOutcome) -> Counter[int]:
    """How often the output of each sample was written."""
    return Counter(index for rank in outcome.ranks for index in rank.made)


def compute_idle_share(makespan: float | None, ideal: float | None) -> float | None:
    """The share of the ranks' time in which they had nothing to do."""
    return None if makespan is None or ideal is None else 1 - ideal / makespan


def measure_folder(folder: Path) -> tuple[int, int]:
    """Files and folders of a job, and the most that any one folder holds."""
    counts = [len(folders) + len(files) for _, folders, files in os.walk(folder)]
    return sum(counts), max(counts)


def simulate_jobs(
    ranks: Sequence[int],
    samples: int,
    *,
    seed: int = 0,
    folder: Path | None = None,
    command: str = "",
    progress: bool = False,
) -> Bench:
    """Simulate a job without and with failures for each number of ranks.

    Args:
        ranks: Numbers of ranks.
        samples: Samples of the job.
        seed: Decides durations and deaths.
        folder: Where the jobs are; a temporary folder by default. Its file system is measured.
        command: Shown with the numbers.
        progress: Say on standard error what is done.

    Raises:
        SimulationError: A job lost a sample or made one twice.
    """
    console = make_console(stderr=True)
    rows = []
    scenario = Scenario(ranks=1, samples=samples)
    with tempfile.TemporaryDirectory(dir=folder, prefix="erta-simulate-") as place:
        for count in ranks:
            for failures in (False, True):
                scenario = Scenario(ranks=count, samples=samples, failures=failures, seed=seed)
                if progress:
                    console.print(f"{count} ranks, failures: {failures}", highlight=False)
                rows.append(simulate_job(scenario, Path(place) / f"{count}-{int(failures)}"))
    return Bench(command, rows, COLUMNS, describe_scenario(scenario))


def describe_scenario(scenario: Scenario) -> dict[str, Value]:
    """The settings that the scenarios share."""
    keys = ("seconds", "spread", "slow", "node", "lease", "deaths", "machines", "back", "outage")
    found: dict[str, Any] = {key: getattr(scenario, key) for key in (*keys, "seed")}
    return {**found, "load": os.getloadavg()[0]}
