"""One worker's part of a job: claim, sample, commit."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from erta_framework.jobs import JobConfig
from erta_integrations.fabric.jobs._claims import Claim, Claims
from erta_integrations.fabric.jobs._manifest import WorkerLog, describe, describe_done
from erta_integrations.fabric.jobs._prompts import Item
from erta_integrations.fabric.jobs._sample_source import SampledItem, SampleSource
from erta_integrations.fabric.jobs._store import Store
from erta_integrations.fabric.jobs._workers import Worker, repeat_in_background

FULL = (errno.ENOSPC, errno.EDQUOT)
POLL = (0.1, 5.0)
"""Shortest and longest seconds between two looks at what others still hold."""


class JobRunner:
    """Samples what it can claim of a job.

    Args:
        folder: The job's folder.
        items: The samples of the job.
        source: Makes them.
        position: Rank and number of ranks.
        job: Batch size and lease.
        picture: Writes a picture of a sample; see `JobRequest`.

    Attributes:
        made: Indices whose output this worker wrote.
        failed: Error of each sample that failed here.
        full: Whether it stopped because the disk is full.
    """

    def __init__(
        self,
        folder: Path,
        items: Sequence[Item],
        source: SampleSource,
        position: tuple[int, int] = (0, 1),
        job: JobConfig = JobConfig(),  # noqa: B008 - frozen
        picture: Callable[[Any, Path], object] | None = None,
    ) -> None:
        self.folder, self.items, self.source = folder, items, source
        self.position, self.job, self.picture = position, job, picture
        self.store = Store(folder)
        self.made: list[int] = []
        self.failed: dict[int, str] = {}
        self.full = False

    def run(self, stay: bool) -> None:
        """Sample until nothing is left to claim.

        Args:
            stay: Wait for what others hold, and take it over if they die.

        Raises:
            Exception: The device is lost to this process; other processes go on.
        """
        with (
            Worker(self.folder, lease=self.job.lease) as worker,
            repeat_in_background(worker.beat, self.job.lease / 6),
            WorkerLog(self.folder, worker.name) as log,
        ):
            claims = Claims(
                self.folder,
                len(self.items),
                worker,
                self.position,
                committed=self.store.committed,
                thorough=stay,
            )
            for seconds in self.turns(claims, log, stay):
                time.sleep(seconds)

    def turns(self, claims: Claims, log: WorkerLog, stay: bool) -> Iterator[float]:
        """Work until nothing is left; yields the seconds to wait, 0 before a batch is sampled."""
        self._claims, self._log = claims, log
        wait = POLL[0]
        while not self.full:
            batch = self._gather(claims)
            if batch:
                yield 0.0
                self._sample(batch)
                wait = POLL[0]
            elif stay and claims.held:
                yield wait
                wait = min(2 * wait, POLL[1], self.job.lease / 2)
            else:
                break

    def _gather(self, claims: Claims) -> list[Claim]:
        """Up to a batch of claims on samples that are not done."""
        batch: list[Claim] = []
        while len(batch) < self.job.batch_size and (claim := claims.claim()) is not None:
            # the output may be there: its worker died or left right after writing it
            if not self.store.has(claim.index):
                batch.append(claim)
        return batch

    def _sample(self, batch: Sequence[Claim]) -> None:
        """Sample claims, those of equal settings together."""

        def settings(claim: Claim) -> str:
            return self.items[claim.index].settings

        for _, group in groupby(sorted(batch, key=settings), key=settings):
            self._attempt(list(group))

    def _attempt(self, group: Sequence[Claim]) -> None:
        """Sample one batch; if that fails, each of its samples alone."""
        try:
            sampled = self.source.sample([self.items[claim.index] for claim in group])
        except Exception as error:
            lost = is_device_lost(error)
            if len(group) > 1 and not lost:
                for claim in group:
                    self._attempt([claim])
                return
            for claim in group:
                self._fail(claim, f"{type(error).__name__}: {error}")
            if lost:  # whatever this process tried next would fail as well
                raise
            return
        for claim, each in zip(group, sampled, strict=True):
            self._commit(claim, each)

    def _commit(self, claim: Claim, sampled: SampledItem) -> None:
        """Write a sample, unless another took it over, and say so."""
        if not self._claims.holds(claim):  # we were taken for dead; another makes the same bytes
            return
        try:
            # the picture first, so that a sample that is done has one
            self._draw(claim.index, sampled)
            self.store.write(claim.index, claim.generation, sampled.tensors, sampled.facts)
        except OSError as error:
            size = sum(tensor.nbytes for tensor in sampled.tensors.values())
            self._fail(claim, self._explain_unwritten(error, claim.index, size))
            return
        self.made.append(claim.index)
        line = describe_done(
            self.items[claim.index],
            self.store,
            sampled.facts,
            seconds=round(sampled.seconds, 6),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            worker=self._claims.worker.name,
        )
        self._log.write(line)

    def _draw(self, index: int, sampled: SampledItem) -> None:
        """Write the picture of a sample, whole or not at all."""
        if self.picture is None:
            return
        folder = self.folder / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f".{index:07d}.*"):  # of a killed process, or a planted link
            left.unlink()
        (sample, *_) = sampled.tensors.values()
        drawn = self.picture(sample, folder / f".{index:07d}")
        if isinstance(drawn, Path):
            os.replace(drawn, drawn.with_name(drawn.name.removeprefix(".")))

    def _explain_unwritten(self, error: OSError, index: int, size: int) -> str:
        """What to say of an output that could not be written; a full disk stops this worker."""
        path = self.store.path(index)
        if error.errno not in FULL:
            return f"{path} could not be written: {error}"
        free = shutil.disk_usage(self.folder).free
        self.full = free < size
        return (
            f"no space left for {path} ({size} bytes of tensors, {free} bytes free); what is done "
            "is kept: free some space, then run again with --resume"
        )

    def _fail(self, claim: Claim, error: str) -> None:
        self.failed[claim.index] = error
        item = self.items[claim.index]
        self._log.write(describe("failed", item, error=error, worker=self._claims.worker.name))
        try:
            self._claims.fail(claim, error)
        except OSError:  # no space for this either: leave, so that the claim is free again
            self.full = True


def is_device_lost(error: Exception) -> bool:
    """Whether an error leaves the accelerator of this process unusable, as a CUDA error does."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    lasting: type[Exception] | None = getattr(torch, "AcceleratorError", None)
    return (lasting is not None and isinstance(error, lasting)) or "CUDA error" in str(error)
