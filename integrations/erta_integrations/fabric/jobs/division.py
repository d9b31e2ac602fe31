"""Who samples what: claims in the job's folder, one file a sample, no server and no rank needed.

A worker claims a sample by creating `claims/<shard>/<index>.0`, which only one process can. It
begins with the part of the job that its rank gives it, then takes free samples of others, so a slow
rank holds back one sample and no more. A claim stays when its sample is done. Where a worker dies,
another creates `<index>.1`, the next generation, which again only one can. `<index>.<n>.failed`
says that generation n failed, and why. `<shard>.full` and `<shard>.done` beside the shards spare
others the reading of a shard in which nothing is free, or everything is done.

It asks of the file system that creating a link (or, where there are none, a file exclusively) and
renaming a file are atomic, as POSIX file systems, NFS from version 3, Lustre and GPFS do; mounted
object stores do not. Finding a free
sample reads one folder of at most `SHARD` claims, never the whole job; a claim in a worker's own
part reads none.
"""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from erta_framework.errors import InputError
from erta_integrations.fabric.jobs.workers import Worker

SHARD = 256
"""Samples whose files share a folder."""
LOOKS = 4
"""Shards in which a worker that does not stay looks for abandoned samples before it leaves: if a
thousand looked everywhere, each at what all the others hold, they would ask a million times."""
COLLISIONS = 3
"""Claims lost to others in a row after which a folder is read again."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to sample one sample: its index, and how many held it before."""

    index: int
    generation: int


@dataclass(slots=True)
class Standing:
    """The newest generation of a sample's claims, and whether that failed."""

    generation: int = -1
    failed: bool = False


class Claims:
    """The claims of one job as one worker sees and makes them.

    Args:
        folder: The job's folder.
        count: Samples of the job.
        worker: Who claims.
        position: Rank and number of ranks, where this worker begins; `(0, 1)` if unknown.
        committed: Gives those of a shard whose output is there.
        thorough: Look for abandoned samples even in shards that are marked as done.

    Attributes:
        calls: How many file operations were made, by kind.

    Example:
        >>> claims = Claims(folder, 100, worker, (3, 8))  # doctest: +SKIP
        >>> claims.claim()  # doctest: +SKIP
        Claim(index=37, generation=0)
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        worker: Worker,
        position: tuple[int, int] = (0, 1),
        *,
        committed: Callable[[int], Iterable[int]],
        thorough: bool = True,
    ) -> None:
        rank, world = position
        if not 0 <= rank < world:
            raise InputError(f"rank {rank} of {world} ranks; ranks count from 0")
        self.folder, self.count, self.worker = folder / "claims", count, worker
        self.calls = {"create": 0, "list": 0, "read": 0}
        self._committed, self._thorough = committed, thorough
        self._own = iter(range(rank * count // world, (rank + 1) * count // world))
        self._random = random.Random(f"{rank}/{world} {worker.name}")
        shards = list(range((count + SHARD - 1) // SHARD))
        self._random.shuffle(shards)
        first = rank * count // world // SHARD
        self._shards = [*(s for s in shards if s != first), *(s for s in shards if s == first)]
        self._unsettled = set(range(len(shards)))
        self._free: list[int] = []
        self._waiting: list[Claim] = []
        self._held: set[int] = set()
        self._mine: set[int] = set()

    # ----------------------------------------------------------------- claiming
    def claim(self) -> Claim | None:
        """Claim a sample that nobody claimed yet; None if there is none left."""
        for index in self._own:
            if self._create(index, 0):
                return self._taken(Claim(index, 0))
            self._own = iter(())  # somebody is here too: look before the next try
            break
        collisions = 0
        while self._free or self._shards:
            if not self._free or collisions >= COLLISIONS:
                self._look()
                collisions = 0
                continue
            index = self._free.pop()
            if self._create(index, 0):
                return self._taken(Claim(index, 0))
            collisions += 1
        return None

    def reclaim(self) -> Claim | None:
        """Take over a sample whose worker died, or that failed before this worker began.

        Afterwards `held` says whether living workers still hold any.
        """
        while True:
            if not self._waiting:
                self._find_abandoned()
            if not self._waiting:
                return None
            claim = self._waiting.pop()
            if self._create(claim.index, claim.generation):
                return self._taken(claim)
            self._held.add(claim.index)  # another was quicker, and has it now

    @property
    def held(self) -> int:
        """How many samples living workers held when `reclaim` last looked."""
        return len(self._held)

    def holds(self, claim: Claim) -> bool:
        """Whether nobody took this claim over."""
        # a claim is a link that leads nowhere, which `exists` would deny
        return not os.path.lexists(self._path(claim.index, claim.generation + 1))

    def fail(self, claim: Claim, error: str) -> None:
        """Record that a claimed sample failed."""
        path = self._failure(claim.index, claim.generation)
        text = json.dumps({"worker": self.worker.name, "error": error})
        path.write_text(text, encoding="utf-8")
        self.worker.stamp(path)

    def release(self, claim: Claim) -> None:
        """Note that a claim is no longer worked on: its output is there, or it was taken over."""
        self._mine.discard(claim.index)

    # ----------------------------------------------------------------- looking
    def _look(self) -> None:
        """Read the claims of a shard and take up those of its samples that are free."""
        self._free = []
        while self._shards and not self._free:
            shard = self._shards[-1]
            standing = self._standings(shard)
            self._free = [k for k in self._indices(shard) if k not in standing]
            if not self._free:  # claims stay, so it will never have free ones again
                self._mark(shard, "full")
                full = self._marked("full")
                self._shards = [each for each in self._shards[:-1] if each not in full]
        self._random.shuffle(self._free)

    def _find_abandoned(self) -> None:
        now = self.worker.beat()
        living: dict[str, bool] = {}
        self._held = set()
        if not self._thorough:
            self._unsettled -= self._marked("done")
        shards = self._random.sample(sorted(self._unsettled), len(self._unsettled))
        looks = len(shards) if self._thorough else LOOKS
        for shard in shards:
            if self._waiting or not looks:  # others find the rest
                break
            standing = self._standings(shard)
            done = set(self._committed(shard))
            missing = [k for k in self._indices(shard) if k not in done]
            looks -= bool(missing)
            if not missing:
                self._mark(shard, "done")
            settled = True
            for index in missing:
                found = standing.get(index, Standing())
                if index in self._mine:  # failed here, or in the batch that is being gathered
                    continue
                if self._abandoned(index, found, now, living):
                    self._waiting.append(Claim(index, found.generation + 1))
                    settled = False
                elif not found.failed:
                    self._held.add(index)
                    settled = False
            if settled:
                self._unsettled.discard(shard)
        self._random.shuffle(self._waiting)

    def _abandoned(self, index: int, found: Standing, now: float, living: dict[str, bool]) -> bool:
        if found.generation < 0:
            return True
        path = self._path(index, found.generation)
        self.calls["read"] += 1
        if found.failed:
            return self._failure(index, found.generation).stat().st_mtime < self.worker.started
        name = signature(path)
        if not name:  # killed between creating the claim and signing it
            return now - path.stat().st_mtime > self.worker.lease
        if name not in living:
            living[name] = self.worker.alive(name, now)
        return not living[name]

    def _standings(self, shard: int) -> dict[int, Standing]:
        """The newest claims of a shard."""
        self.calls["list"] += 1
        found: dict[int, Standing] = {}
        try:
            names = os.listdir(self.folder / f"{shard:05d}")
        except FileNotFoundError:
            return found
        for name in names:
            index, generation, *rest = name.split(".")
            each = found.setdefault(int(index), Standing())
            if int(generation) > each.generation:
                each.generation, each.failed = int(generation), bool(rest)
            elif int(generation) == each.generation:
                each.failed = each.failed or bool(rest)
        return found

    # ----------------------------------------------------------------- files
    def _indices(self, shard: int) -> range:
        return range(shard * SHARD, min((shard + 1) * SHARD, self.count))

    def _mark(self, shard: int, word: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{shard:05d}.{word}").touch()

    def _marked(self, word: str) -> set[int]:
        self.calls["list"] += 1
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return set()
        return {int(name.partition(".")[0]) for name in names if name.endswith(f".{word}")}

    def _path(self, index: int, generation: int) -> Path:
        return self.folder / f"{index // SHARD:05d}" / f"{index:07d}.{generation}"

    def _failure(self, index: int, generation: int) -> Path:
        return self._path(index, generation).with_suffix(f".{generation}.failed")

    def _create(self, index: int, generation: int) -> bool:
        """Whether this worker, and no other, created the claim."""
        path = self._path(index, generation)
        self.calls["create"] += 1
        for _ in range(2):
            try:
                sign(path, self.worker.name)
            except FileExistsError:
                return False
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
                continue
            return True
        raise OSError(errno.ENOENT, "the folder of the claims vanished", str(path.parent))

    def _taken(self, claim: Claim) -> Claim:
        self._mine.add(claim.index)
        return claim


def sign(path: Path, name: str) -> None:
    """Create a claim that holds a worker's name, both in one step where the file system can.

    A symbolic link that leads nowhere is created with its content or not at all, so that no kill
    can leave a claim of nobody.

    Raises:
        FileExistsError: Somebody has the claim.
        FileNotFoundError: Its folder is not there yet.
    """
    try:
        os.symlink(name, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644), "w") as file:
            file.write(name)


def signature(path: Path) -> str:
    """The worker that a claim names; empty where it was killed before it could sign."""
    if path.is_symlink():
        return os.readlink(path)
    return path.read_text(encoding="utf-8")
