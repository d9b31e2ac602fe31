"""One worker's part of a job: claim, sample, commit; then take over what others left."""

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
from erta_integrations.fabric.jobs.division import Claim, Claims
from erta_integrations.fabric.jobs.manifest import Log, done_record
from erta_integrations.fabric.jobs.prompts import Item
from erta_integrations.fabric.jobs.store import Store
from erta_integrations.fabric.jobs.work import Made, Work
from erta_integrations.fabric.jobs.workers import Pulse, Worker

FULL = (errno.ENOSPC, errno.EDQUOT)
POLL = (0.1, 5.0)
"""Shortest and longest seconds between two looks at what others still hold."""


class Runner:
    """Samples what it can claim of a job.

    Args:
        folder: The job's folder.
        items: The samples of the job.
        work: Samples them.
        position: Rank and number of ranks.
        job: Batch size and lease.
        picture: Writes a picture of a sample; see `JobRequest`.

    Attributes:
        made: Indices whose output this worker wrote.
        failed: Error of each sample that failed here.
        full: Whether it stopped because there is no space left.
    """

    def __init__(
        self,
        folder: Path,
        items: Sequence[Item],
        work: Work,
        position: tuple[int, int] = (0, 1),
        job: JobConfig = JobConfig(),  # noqa: B008 - frozen
        picture: Callable[[Any, Path], object] | None = None,
    ) -> None:
        self.folder, self.items, self.work = folder, items, work
        self.position, self.job, self.picture = position, job, picture
        self.store = Store(folder)
        self.made: list[int] = []
        self.failed: dict[int, str] = {}
        self.full = False

    def run(self, stay: bool) -> None:
        """Sample until nothing is left to claim.

        Args:
            stay: Wait for what others hold, and take it over if they die.
        """
        with (
            Worker(self.folder, lease=self.job.lease) as worker,
            Pulse(worker),
            Log(self.folder, worker.name) as log,
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

    def turns(self, claims: Claims, log: Log, stay: bool) -> Iterator[float]:
        """Work until nothing is left; gives the seconds to wait: 0 before a batch is sampled."""
        wait = POLL[0]
        while not self.full:
            batch = self._gather(claims)
            if batch:
                yield 0.0
                self._sample(batch, claims, log)
                wait = POLL[0]
            elif stay and claims.held:
                yield wait
                wait = min(2 * wait, POLL[1], self.job.lease / 2)
            else:
                break

    def _gather(self, claims: Claims) -> list[Claim]:
        """Up to a batch of claims on samples that are not done."""
        batch: list[Claim] = []
        while len(batch) < self.job.batch_size:
            claim = claims.claim() or claims.reclaim()
            if claim is None:
                break
            if self.store.has(claim.index):  # its worker died between the output and the next claim
                claims.release(claim)
            else:
                batch.append(claim)
        return batch

    def _sample(self, batch: Sequence[Claim], claims: Claims, log: Log) -> None:
        """Sample claims, those of equal settings together."""

        def settings(claim: Claim) -> str:
            return self.items[claim.index].settings

        for _, group in groupby(sorted(batch, key=settings), key=settings):
            self._attempt(list(group), claims, log)

    def _attempt(self, group: Sequence[Claim], claims: Claims, log: Log) -> None:
        """Sample one batch; where it fails, each sample alone, so that one spoils no other.

        Raises:
            Exception: The device is lost to this process; other processes go on.
        """
        try:
            made = self.work.sample([self.items[claim.index] for claim in group])
        except Exception as error:
            lost = lost_device(error)
            if len(group) > 1 and not lost:
                for claim in group:
                    self._attempt([claim], claims, log)
                return
            for claim in group:
                self._fail(claim, f"{type(error).__name__}: {error}", claims, log)
            if lost:  # whatever this process tried next would fail as well
                raise
            return
        for claim, each in zip(group, made, strict=True):
            self._commit(claim, each, claims, log)

    def _commit(self, claim: Claim, made: Made, claims: Claims, log: Log) -> None:
        item = self.items[claim.index]
        if not claims.holds(claim):  # we were taken for dead; another makes the same bytes
            claims.release(claim)
            return
        try:
            if self.picture is not None:
                self._draw(claim.index, made)
            self.store.write(claim.index, claim.generation, made.tensors, made.facts)
        except OSError as error:
            size = sum(tensor.nbytes for tensor in made.tensors.values())
            self._fail(claim, self._unwritten(error, claim.index, size), claims, log)
            return
        claims.release(claim)
        self.made.append(claim.index)
        self.failed.pop(claim.index, None)
        volatile = {
            "seconds": round(made.seconds, 6),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "worker": claims.worker.name,
        }
        log.write({**done_record(item, self.store, made.facts), **volatile})

    def _unwritten(self, error: OSError, index: int, size: int) -> str:
        """What to say of an output that could not be written; stops a worker without space."""
        path = self.store.path(index)
        if error.errno not in FULL:
            return f"{path} could not be written: {error}"
        free = shutil.disk_usage(self.folder).free
        self.full = free < size
        return (
            f"no space left for {path} ({size} bytes of tensors, {free} bytes free); what is done "
            "is kept: free some space, then run again with --resume"
        )

    def _draw(self, index: int, made: Made) -> None:
        """Write the picture before the sample is done, so that a sample that is done has one."""
        assert self.picture is not None
        folder = self.folder / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        (sample, *_) = made.tensors.values()
        drawn = self.picture(sample, folder / f".{index:07d}")
        if isinstance(drawn, Path):
            os.replace(drawn, drawn.with_name(drawn.name.removeprefix(".")))

    def _fail(self, claim: Claim, error: str, claims: Claims, log: Log) -> None:
        item = self.items[claim.index]
        self.failed[claim.index] = error
        record = {
            "event": "failed",
            "index": item.index,
            "prompt": item.prompt,
            "seed": item.seed,
            "error": error,
            "worker": claims.worker.name,
        }
        log.write(record)
        try:
            claims.fail(claim, error)
        except OSError:
            # no space for it either; when this worker leaves, its claim is free again
            return


def lost_device(error: Exception) -> bool:
    """Whether an error leaves the accelerator of this process unusable, as a CUDA error does."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    lasting: type[Exception] | None = getattr(torch, "AcceleratorError", None)
    return (lasting is not None and isinstance(error, lasting)) or "CUDA error" in str(error)
