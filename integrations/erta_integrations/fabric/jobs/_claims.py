"""Who samples what: one claim file a sample in the job's folder, and no server.

**A claim** on a sample is the file `claims/<shard>/<index>.0`, a symbolic link to nowhere that
holds the worker's name. Creating a link is atomic and exclusive, so exactly one worker gets each
sample. Claims are never removed: a sample is done when its output is there.

**Takeover.** When a worker dies, another creates `<index>.1`, the next *generation*, which again
only one can. The newest generation holds the sample. A worker that was thought dead and comes back
finds the newer claim before it writes, and writes nothing. Should it be too late for that, both
rename equal bytes into the same place.

**Failure.** `<index>.<n>.failed` says that generation n failed, and why. Workers that start later
take the sample over and try again; workers that were there before leave it alone. So a resumed job
tries each failed sample once, and a job never tries one forever.

**Order.** A worker begins with its rank's part of the job, which costs one file operation a sample.
It then takes unclaimed samples of others, and last those whose worker died. A slow rank therefore
holds back the batch in its hands and no more.

The file system must create links (or, where it has none, files exclusively) and rename files
atomically. POSIX file systems, NFS from version 3, Lustre and GPFS do; mounted object stores do
not.
"""

from __future__ import annotations

import errno
import json
import math
import os
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from erta_framework.errors import InputError
from erta_framework.files import CREATE, open_new
from erta_integrations.fabric.jobs._store import SHARD, list_shards
from erta_integrations.fabric.jobs._workers import Worker

NAME = re.compile(r"(?P<index>\d{7,18})\.(?P<generation>\d{1,9})(?P<failed>\.failed)?")
"""Names of claims and failures; any other file in their folders is ignored."""
LOOKS = 4
"""Unfinished shards that a worker searches for dead workers' samples before it leaves. Caps the
scan: N leaving workers that each check all N others would be O(N^2) reads."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to make one sample.

    Attributes:
        index: The sample.
        generation: How many claims on it came before this one.
    """

    index: int
    generation: int


class Claims:
    """The claims of one job, as one worker makes and sees them.

    Args:
        folder: The job's folder.
        count: Samples of the job.
        worker: Who claims.
        position: Rank and number of ranks, which say where this worker begins; `(0, 1)` if unknown.
        committed: Gives the samples of a shard whose output is there.
        thorough: Search every shard for dead workers' samples, not only `LOOKS` of them. One worker
            of a job must.

    Attributes:
        held: Samples that living workers held when `claim` last returned None.

    Raises:
        InputError: There is no such rank.

    Example:
        >>> claims = Claims(folder, 100, worker, (3, 8), committed=store.committed)
        ... # doctest: +SKIP
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
        self.held = 0
        self._committed, self._thorough = committed, thorough
        self._random = random.Random(f"{rank}/{world} {worker.name}")
        self._part = iter(range(rank * count // world, (rank + 1) * count // world))
        shards = list_shards(count)
        self._unclaimed = self._random.sample(shards, len(shards))
        self._unfinished = set(shards)

    def claim(self) -> Claim | None:
        """Claim a sample that is free, or take one over whose worker died; None if none is left.

        After None, `held` says whether living workers still hold some.
        """
        for index in self._part:
            if self._create(Claim(index, 0)):
                return Claim(index, 0)
            self._part = iter(())  # somebody else is here: look before the next try
            break
        # each failed try is a sample that somebody else has now, so this ends
        while (found := self._find_unclaimed() or self._find_abandoned()) is not None:
            if self._create(found):
                return found
        return None

    def holds(self, claim: Claim) -> bool:
        """Whether nobody took this claim over."""
        # a claim is a link that leads nowhere, which `exists` would deny
        return not os.path.lexists(self._path(Claim(claim.index, claim.generation + 1)))

    def fail(self, claim: Claim, error: str) -> None:
        """Record that a claimed sample failed."""
        path = self._failure(claim)
        text = json.dumps({"worker": self.worker.name, "error": error})
        with os.fdopen(open_new(path), "w", encoding="utf-8") as file:
            file.write(text)
        self.worker.stamp(path)

    def is_being_made(self, claim: Claim) -> bool:
        """Whether this is the newest claim on its sample, and its worker is alive."""
        newest = self._newest_claims(claim.index // SHARD).get(claim.index)
        if newest != (claim.generation, False):
            return False
        return not self._is_abandoned(claim, False, self.worker.beat())

    def is_held(self, index: int) -> bool:
        """Whether a living worker has the newest claim on a sample."""
        newest = self._newest_claims(index // SHARD).get(index)
        return newest is not None and self.is_being_made(Claim(index, newest[0]))

    # ----------------------------------------------------------------- looking for a sample
    def _find_unclaimed(self) -> Claim | None:
        """A sample without any claim; reads one folder, and forgets a shard that has no more.

        The sample is a random one, so that workers who look at the same shard rarely try for the
        same.
        """
        while self._unclaimed:
            shard = self._unclaimed[-1]
            newest = self._newest_claims(shard)
            free = [index for index in self._indices(shard) if index not in newest]
            if free:
                return Claim(self._random.choice(free), 0)
            self._unclaimed.pop()  # claims stay, so it never has a free sample again
        return None

    def _find_abandoned(self) -> Claim | None:
        """The next generation of a sample that nobody will make; counts `held` if there is none.

        Shards and samples are tried in random order, so that workers spread over what an outage
        left. A shard is forgotten only when all its outputs are there.
        """
        # an output may appear after we read the outputs, and its worker may leave before we read
        # the claims: whoever takes a sample over must look for its output once more
        now, looks = self.worker.beat(), math.inf if self._thorough else LOOKS
        self.held = 0
        for shard in self._random.sample(sorted(self._unfinished), len(self._unfinished)):
            missing = set(self._indices(shard)).difference(self._committed(shard))
            if not missing:
                self._unfinished.discard(shard)
                continue
            if looks == 0:
                break
            looks -= 1
            newest = self._newest_claims(shard)
            for index in self._random.sample(sorted(missing), len(missing)):
                generation, failed = newest.get(index, (-1, False))
                if self._is_abandoned(Claim(index, generation), failed, now):
                    return Claim(index, generation + 1)
                self.held += not failed
        return None

    def _is_abandoned(self, claim: Claim, failed: bool, now: float) -> bool:
        """Whether the newest claim on a sample that is not done will not lead to an output."""
        if claim.generation < 0:
            return True
        if failed:  # before this worker began: tried again, once
            return self._failure(claim).stat().st_mtime < self.worker.started
        path = self._path(claim)
        name = read_signature(path)
        if not name:  # killed between creating the claim and signing it
            return now - path.lstat().st_mtime > self.worker.lease
        return not self.worker.is_alive(name, now)

    # ----------------------------------------------------------------- files
    def _newest_claims(self, shard: int) -> dict[int, tuple[int, bool]]:
        """The newest generation of each claimed sample of a shard, and whether it failed."""
        found: dict[int, tuple[int, bool]] = {}
        try:
            names = os.listdir(self.folder / f"{shard:05d}")
        except (FileNotFoundError, NotADirectoryError):
            return found
        for claimed in filter(None, map(NAME.fullmatch, names)):
            # of one generation the failure is the greater pair, and wins over the claim
            each = (int(claimed["generation"]), claimed["failed"] is not None)
            index = int(claimed["index"])
            found[index] = max(each, found.get(index, each))
        return found

    def _indices(self, shard: int) -> range:
        return range(shard * SHARD, min((shard + 1) * SHARD, self.count))

    def _path(self, claim: Claim) -> Path:
        folder = self.folder / f"{claim.index // SHARD:05d}"
        return folder / f"{claim.index:07d}.{claim.generation}"

    def _failure(self, claim: Claim) -> Path:
        return self._path(claim).with_suffix(f".{claim.generation}.failed")

    def _create(self, claim: Claim) -> bool:
        """Whether this worker, and no other, has the claim now."""
        path = self._path(claim)
        try:
            create_signed(path, self.worker.name)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            return self._create(claim)
        except FileExistsError:
            # NFS may repeat a request whose answer was lost, and then find our own claim
            return read_signature(path) == self.worker.name
        return True


def create_signed(path: Path, name: str) -> None:
    """Create a claim that holds a worker's name.

    A symbolic link is created together with its content, so that no kill can leave a claim of
    nobody. Only a file system without links needs two steps.

    Raises:
        FileExistsError: Somebody has the claim.
        FileNotFoundError: Its folder is not there yet.
    """
    try:
        os.symlink(name, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        with os.fdopen(os.open(path, CREATE, 0o644), "w", encoding="utf-8") as file:
            file.write(name)


def read_signature(path: Path) -> str:
    """The worker that a claim names; empty where it was killed before it could sign."""
    try:
        return os.readlink(path) if path.is_symlink() else path.read_text(encoding="utf-8")
    except (IsADirectoryError, PermissionError, UnicodeDecodeError):
        return ""  # no claim of ours; it counts as unsigned
