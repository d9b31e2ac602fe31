"""Runs scenarios of a worker script in several gloo processes, and kills what takes too long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).parent
Results = list[dict[str, Any]]


class Ranks:
    """What each rank of a run wrote: facts by scenario, and tensors by `scenario.name`."""

    def __init__(self, facts: Results, tensors: list[dict[str, Tensor]], codes: list[int]) -> None:
        self.facts, self.tensors, self.codes = facts, tensors, codes

    def __call__(self, scenario: str) -> list[dict[str, Any]]:
        return [facts[scenario] for facts in self.facts]

    def tensor(self, name: str) -> list[Tensor]:
        return [tensors[name] for tensors in self.tensors]


def run_ranks(
    folder: Path,
    script: str,
    scenarios: Sequence[str],
    *,
    world: int = 2,
    limit: float = 120.0,
    survivors: Sequence[int] | None = None,
) -> Ranks:
    """Run scenarios one after another in `world` processes; no process outlives `limit` seconds."""
    expected = range(world) if survivors is None else survivors
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(world)}
    environment |= {"RANKS_SURVIVORS": str(len(expected))}
    environment |= {"RANKS_STORE": str(folder / "store"), "RANKS_OUT": str(folder)}
    started, logs = [], []
    for rank in range(world):
        logs.append((folder / f"log-{rank}.txt").open("w+", encoding="utf-8"))
        started.append(
            subprocess.Popen(
                [sys.executable, str(HERE / script), *scenarios],
                env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=logs[-1],
                stderr=subprocess.STDOUT,
            )
        )
    try:
        end = time.monotonic() + limit
        codes = [process.wait(max(0.1, end - time.monotonic())) for process in started]
    except subprocess.TimeoutExpired:
        codes = [-1] * world
    finally:
        for process in started:
            process.kill()
            process.wait()
    said = ""
    for rank, written in enumerate(logs):
        written.seek(0)
        said += f"--- rank {rank}\n{written.read()[-6000:]}"
        written.close()
    assert all(codes[rank] == 0 for rank in expected), f"{codes}\n{said}"
    return Ranks(
        [json.loads((folder / f"{rank}.json").read_text("utf-8")) for rank in expected],
        [load_file(folder / f"{rank}.safetensors") for rank in expected],
        codes,
    )


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Ranks]:
    """`ranks(script, scenarios, world=2)`; the same run is made once a module."""
    done: dict[object, Ranks] = {}

    def run(script: str, scenarios: Sequence[str], **options: Any) -> Ranks:
        key = (script, tuple(scenarios), repr(options))
        if key not in done:
            done[key] = run_ranks(tmp_path_factory.mktemp("ranks"), script, scenarios, **options)
        return done[key]

    return run
