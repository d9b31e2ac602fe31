"""What a later run does first with what an earlier one left in the folder of a job."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from erta_framework.errors import InputError
from erta_framework.files import name_partial
from erta_integrations.fabric.jobs._claims import Claim, Claims
from erta_integrations.fabric.jobs._manifest import Tally
from erta_integrations.fabric.jobs._store import Store, list_shards
from erta_integrations.fabric.jobs._workers import Worker

log = logging.getLogger(__name__)
READERS = 4
"""Threads that read samples; hashing leaves Python's lock to the others."""
PARTIAL = re.compile(r"\.(?P<index>\d{7,18})\.(?P<generation>\d{1,9})\.partial")
PICTURE = re.compile(r"\.(?P<index>\d{7,18})\..+")


def tidy_folder(folder: Path, count: int, lease: float, tally: Tally) -> tuple[int, ...]:
    """Take damaged samples and the litter of killed processes away, before a job goes on.

    Nothing is done while others work in the folder and one of them has looked already: of the
    living workers, the one whose name comes first looks. Claims stay: that of a dead worker is
    taken over by a newer one, and a worker that was thought dead sees this only by the claims.

    Args:
        folder: The job's folder.
        count: Samples of the job.
        lease: Seconds without a heartbeat after which a worker is dead.
        tally: The lines of all workers, read up to now; what was damaged is taken out of it.

    Returns:
        The samples that were damaged; they are not done any more.
    """
    store = Store(folder)
    with Worker(folder, lease=lease) as visitor:
        now = visitor.beat()
        others = [path for path in visitor.folder.glob("*.json") if path != visitor.path]
        alive = [path for path in others if visitor.is_alive(path.stem, now)]
        if any(path.name < visitor.path.name for path in alive):
            return ()
        damaged = tuple(take_damaged_away(store, count, tally))
        claims = Claims(folder, count, visitor, committed=store.committed)
        for path in (*list_litter(folder, claims, now - lease), *{*others}.difference(alive)):
            with contextlib.suppress(OSError):  # another was quicker, or it is a folder
                path.unlink()
    return damaged


# ------------------------------------------------------------------------------------ damage
def take_damaged_away(store: Store, count: int, tally: Tally) -> Iterator[int]:
    """Remove samples that are not what was written, and say so; yields their indices."""
    done = [k for shard in list_shards(count) for k in sorted(store.committed(shard)) if k < count]
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda k: find_damage(store, k, tally.seals.get(k, ())), done)
        for index, damage in zip(done, found, strict=True):
            if damage is None:
                continue
            path = store.path(index)
            log.warning("%s %s; it does not count as done and is made again", path, damage)
            if path.is_dir() and not path.is_symlink():
                os.replace(path, name_partial(path).with_suffix(".stray"))
            else:
                path.unlink(missing_ok=True)
            tally.forget(index)
            yield index


def find_damage(store: Store, index: int, seals: Collection[tuple[int, str]]) -> str | None:
    """What is wrong with the file of a sample, or None.

    Args:
        store: The samples.
        index: The sample.
        seals: Size and digest of its file, as often as it was made; empty if that is not known.
    """
    path = store.path(index)
    if not path.is_file():
        return "is no file"
    size = path.stat().st_size
    if seals and size not in {written for written, _ in seals}:
        return f"has {size} bytes, {seals_in_words(seals)} were written"
    try:
        store.facts(index)  # the header, and whether the data is as long as it says
    except InputError as error:
        return f"cannot be read ({error})"
    seal = store.seal(index) if seals else {}
    if seals and (seal.get("bytes"), seal.get("sha256")) not in set(seals):
        return "has another digest than what was written"
    return None


def seals_in_words(seals: Collection[tuple[int, str]]) -> str:
    """The sizes that were written."""
    return " or ".join(str(size) for size in sorted({size for size, _ in seals}))


# ------------------------------------------------------------------------------------ litter
def list_litter(folder: Path, claims: Claims, before: float) -> Iterator[Path]:
    """Partial files that nobody will finish.

    Args:
        folder: The job's folder.
        claims: Say who is making what.
        before: Partial files without a claim are litter if they are older than this.
    """
    for path in folder.glob("samples/*/.*"):
        named = PARTIAL.fullmatch(path.name)
        if named is not None:
            claim = Claim(int(named["index"]), int(named["generation"]))
            if not claims.is_being_made(claim):
                yield path
    for path in folder.glob("pictures/.*"):
        named = PICTURE.fullmatch(path.name)
        if named is not None and not claims.is_held(int(named["index"])):
            yield path
    for path in folder.glob(".*.partial"):
        with contextlib.suppress(OSError):
            if path.lstat().st_mtime < before:
                yield path
