"""A job of many ranks in one process: the real claims, outputs and manifests in simulated time.

Only what costs a GPU is replaced: a sample takes simulated seconds and is one number. Everything
else is the code of a job: each rank has its `Runner`, `Claims`, `Worker`, `Store` and `Log` in one
real folder. A death is an exception that nothing handles, raised between two file operations,
after which the rank does nothing more.

The file is long because the job, its ranks and their deaths share one simulated clock and one list
of events; apart, each half would reach into the other.
"""

from __future__ import annotations

import heapq
import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from erta_bench.scale._file_calls import FileCalls, Killed
from erta_framework.errors import ErtaError
from erta_framework.jobs import JobConfig
from erta_integrations.fabric.jobs import (
    Claim,
    Claims,
    Item,
    JobRunner,
    SampledItem,
    Worker,
    WorkerLog,
    open_folder,
)

REACH = 17
"""A rank that dies at work dies within so many file operations: a commit and a claim."""


class SimulationError(ErtaError):
    """A simulated job lost a sample, made one twice, or tore a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What happens to a job.

    Attributes:
        ranks: Processes of the launch.
        samples: Samples of the job.
        failures: Whether ranks and machines die, as `deaths`, `machines` and `outage` say.
        seconds: Median time of a sample.
        spread: Standard deviation of the logarithm of the times.
        slow: Share of ranks at a third of the speed.
        node: Ranks of a machine.
        lease: Seconds without a pulse after which a rank is dead.
        deaths: Share of ranks that die, at a random moment of the first launch.
        machines: Share of machines that die with all their ranks.
        back: Seconds after which every second dead rank is replaced by a process that joins
            with `--resume`.
        outage: Share of the samples at which every process is killed. Half as many ranks then
            resume the job, and again some of them die.
        seed: Decides durations and deaths.
    """

    ranks: int
    samples: int
    failures: bool = False
    seconds: float = 30.0
    spread: float = 0.25
    slow: float = 0.02
    node: int = 8
    lease: float = 60.0
    deaths: float = 0.05
    machines: float = 0.02
    back: float = 120.0
    outage: float = 0.6
    seed: int = 0


class NumberSource:
    """Samples a number that its seed determines; `Work` of a job."""

    known = ()

    def identity(self) -> dict[str, Any]:
        return {"model": "a number"}

    def check(self, overrides: object) -> None:
        return None

    def sample(self, items: Sequence[Item]) -> list[SampledItem]:
        trace = {"network_calls": 1, "branch_calls": 1}
        return [
            SampledItem(
                {"sample": torch.tensor([item.seed])}, {"seed": item.seed, "trace": trace}, 0.0
            )
            for item in items
        ]


class Rank(JobRunner):
    """A rank whose turns the simulation takes one at a time.

    Attributes:
        busy: Simulated seconds of samples that it finished.
        left: When it left, or died.
        holding: What it is sampling.
        claim_seconds: Real seconds of each claim.
    """

    def __init__(
        self, job: Job, position: tuple[int, int], node: int, speed: float, stay: bool
    ) -> None:
        super().__init__(job.folder, job.items, NumberSource(), position, job.config)
        self.node, self.speed, self.dead = node, speed, False
        self.busy, self.left = 0.0, math.nan
        self.holding: list[Claim] = []
        self.claim_seconds: list[float] = []
        self.worker = Worker(
            job.folder, lease=job.config.lease, host=f"node-{node}", clock=lambda: job.now
        )
        self.log = WorkerLog(job.folder, self.worker.name).__enter__()
        self.claims = Claims(
            job.folder,
            len(job.items),
            self.worker,
            position,
            committed=self.store.committed,
            thorough=stay,
        )
        self.life: Iterator[float] = self.turns(self.claims, self.log, stay)

    def _gather(self, claims: Claims) -> list[Claim]:
        self.holding = []
        clock = time.perf_counter()
        self.holding = super()._gather(claims)
        self.claim_seconds.append(time.perf_counter() - clock)
        return self.holding


@dataclass(slots=True)
class JobOutcome:
    """What happened in a simulated job.

    Attributes:
        makespan: Simulated seconds from the start to the end of the last rank's work.
        fixed: What they would be if each rank kept the part that it begins with; None with
            failures, where it would never end.
        ideal: What they would be without any idle rank; None with failures.
        ranks: Every rank of every launch.
        began: How often each sample was begun.
        interrupted: How often each was begun by a rank that died before its output was there.
        deaths: Ranks that died.
        calls: File operations by kind, and by second.
    """

    makespan: float
    fixed: float | None
    ideal: float | None
    ranks: list[Rank]
    began: Counter[int]
    interrupted: Counter[int]
    deaths: int
    calls: FileCalls


class Job:
    """One simulated job in a folder of its own.

    Args:
        scenario: What happens.
        folder: An empty folder.
        items: The samples.
    """

    def __init__(self, scenario: Scenario, folder: Path, items: Sequence[Item]) -> None:
        self.scenario, self.folder, self.items = scenario, folder, items
        self.config = JobConfig(lease=scenario.lease)
        self.now = 0.0
        self.calls = FileCalls(folder, lambda: self.now)
        self.ranks: list[Rank] = []
        self.living: dict[Rank, None] = {}
        self.began: Counter[int] = Counter()
        self.interrupted: Counter[int] = Counter()
        self.deaths, self.made = 0, 0
        self._random = random.Random(scenario.seed)
        draw = random.Random(scenario.seed + 1)
        self.durations = [
            scenario.seconds * math.exp(draw.gauss(0.0, scenario.spread)) for _ in items
        ]
        self._events: list[tuple[float, int, str, Rank | None]] = []
        self._count = 0
        self._worked = 0.0

    # ----------------------------------------------------------------- the course of a job
    def run(self) -> JobOutcome:
        """Simulate until no process is left."""
        scenario = self.scenario
        with self.calls:
            speeds = self.launch(scenario.ranks, resume=False)
            parts = [
                sum(self.durations[slice(*find_part(r, scenario.ranks, len(self.items)))]) / speed
                for r, speed in enumerate(speeds)
            ]
            ideal = sum(self.durations) / sum(speeds)
            if scenario.failures:
                self.plan_deaths(scenario.outage * ideal)
            self.at(scenario.lease / 6, "beat")
            self.loop()
        fine = not scenario.failures
        return JobOutcome(
            makespan=self._worked,
            fixed=max(parts) if fine else None,
            ideal=ideal if fine else None,
            ranks=self.ranks,
            began=self.began,
            interrupted=self.interrupted,
            deaths=self.deaths,
            calls=self.calls,
        )

    def launch(self, count: int, resume: bool) -> list[float]:
        """Start ranks as a launcher does, and give their speeds."""
        open_folder(self.folder, NumberSource().identity(), resume)
        speeds = [
            1 / 3 if self._random.random() < self.scenario.slow else 1.0 for _ in range(count)
        ]
        for number, speed in enumerate(speeds):
            self.join((number, count), number // self.scenario.node, speed)
        return speeds

    def join(self, position: tuple[int, int], node: int, speed: float) -> None:
        """Start one process."""
        rank = Rank(self, position, node, speed, stay=position[0] == 0)
        self.ranks.append(rank)
        self.living[rank] = None
        self.at(0.0, "turn", rank)

    def plan_deaths(self, span: float) -> None:
        """Draw who dies when; never rank 0 of a launch, which reports for all."""
        scenario, launch = self.scenario, list(self.living)
        nodes = sorted({rank.node for rank in launch})[1:]
        for node in self._random.sample(nodes, round(scenario.machines * len(nodes))):
            moment = self._random.uniform(0, span)
            for rank in launch:
                if rank.node == node:
                    self.at(moment, "kill", rank)
        for rank in self._random.sample(launch[1:], round(scenario.deaths * len(launch[1:]))):
            self.at(self._random.uniform(0, span), self._random.choice(("kill", "doom")), rank)

    def at(self, seconds: float, what: str, rank: Rank | None = None) -> None:
        """Plan an event so many seconds from now."""
        self._count += 1
        heapq.heappush(self._events, (self.now + seconds, self._count, what, rank))

    def loop(self) -> None:
        """Take events in order of time until all processes are gone."""
        restarts = int(self.scenario.failures)
        doomed: set[int] = set()
        while self._events:
            self.now, _, what, rank = heapq.heappop(self._events)
            if what == "beat":
                for each in self.living:
                    each.worker.beat()
                if self.living:
                    self.at(self.scenario.lease / 6, "beat")
            elif what == "back":
                self.join((0, 1), len(self.ranks), 1.0)  # alone, and so it stays to the end
            elif rank is None or rank not in self.living:
                continue
            elif what == "doom":
                doomed.add(id(rank))
            elif what == "kill":
                self.kill(rank)
            else:
                self.turn(rank, self._random.randrange(REACH) if id(rank) in doomed else None)
            if restarts and self.made >= self.scenario.outage * len(self.items):
                restarts -= 1
                self.outage()

    def outage(self) -> None:
        """Kill every process, and resume with half as many ranks."""
        for rank in list(self.living):
            self.kill(rank, replace=False)
        self._events = [event for event in self._events if event[2] == "beat"]
        heapq.heapify(self._events)
        speeds = self.launch(max(1, self.scenario.ranks // 2), resume=True)
        self.plan_deaths((1 - self.scenario.outage) * sum(self.durations) / sum(speeds))

    # ----------------------------------------------------------------- one rank
    def turn(self, rank: Rank, operations: int | None) -> None:
        """Let a rank go on until it samples, waits or leaves, or dies on the way."""
        before = len(rank.made)
        try:
            if operations is None:
                wait = next(rank.life, None)
            else:
                with self.calls.kill_after(operations):
                    wait = next(rank.life, None)
        except Killed:
            self.kill(rank)
            return
        finally:
            if len(rank.made) > before:
                self.made, self._worked = self.made + len(rank.made) - before, self.now
        if operations is not None:
            rank.holding = []  # claimed, and not begun
            self.kill(rank)
        elif wait is None:
            rank.log.__exit__(None, None, None)
            rank.worker.close()
            rank.left = self.now
            del self.living[rank]
        elif rank.holding:
            self.begin(rank)
        else:
            self.at(wait, "turn", rank)

    def begin(self, rank: Rank) -> None:
        """Sample what a rank claimed, which takes a while."""
        seconds = sum(self.durations[claim.index] for claim in rank.holding) / rank.speed
        for claim in rank.holding:
            self.began[claim.index] += 1
        rank.busy += seconds
        self.at(seconds, "turn", rank)

    def kill(self, rank: Rank, replace: bool = True) -> None:
        """End a rank where it stands."""
        self.deaths += 1
        with self.calls.unseen():
            for claim in rank.holding:
                if not rank.store.has(claim.index):
                    self.interrupted[claim.index] += 1
        rank.log.__exit__(None, None, None)  # the system closes what a killed process had open
        rank.left = self.now
        del self.living[rank]
        if replace and self._random.random() < 0.5:
            self.at(self.scenario.back, "back")


def find_part(rank: int, world: int, count: int) -> tuple[int, int]:
    """First and one past the last sample of the part of the job that a rank begins with."""
    return rank * count // world, (rank + 1) * count // world
