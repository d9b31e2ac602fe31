"""The outputs of a job: one file a sample, which is there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from erta_framework.errors import InputError
from erta_framework.files import create_whole, write_atomically

SHARD = 256
"""Samples whose files share a folder."""
SCHEMA = "erta_framework.job/1"
METADATA = "erta"
"""Key of the safetensors metadata that holds the JSON facts of a sample."""
SUFFIX = ".safetensors"
SAMPLE = re.compile(r"\d{7,18}" + re.escape(SUFFIX))
"""Names of samples; any other file in their folders is ignored."""
WAITS = (0.05, 0.1, 0.3, 0.5)
"""Seconds between looks at a `job.json` that holds nothing yet."""


class Store:
    """The samples in a job's folder, `samples/<shard>/<index>.safetensors`.

    A file holds the tensors of a sample and, in its header, the JSON facts about it. Renaming the
    file into place is therefore the one moment at which the sample is done. A file holds nothing
    that depends on when or where it was made, so equal requests give equal bytes.

    Args:
        folder: The job's folder.

    Example:
        >>> store = Store("runs/job")  # doctest: +SKIP
        >>> store.load(0)["sample"].shape  # doctest: +SKIP
        torch.Size([3, 16, 32, 32])
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder) / "samples"

    def path(self, index: int) -> Path:
        """The file of a sample."""
        return self.folder / f"{index // SHARD:05d}" / f"{index:07d}{SUFFIX}"

    def partial(self, index: int, generation: int) -> Path:
        """The file that one claim writes before it renames it into place."""
        return self.path(index).with_name(f".{index:07d}.{generation}.partial")

    def has(self, index: int) -> bool:
        """Whether a sample is done."""
        return self.path(index).is_file()

    def committed(self, shard: int) -> set[int]:
        """The samples of a shard that are done."""
        try:
            names = os.listdir(self.folder / f"{shard:05d}")
        except FileNotFoundError:
            return set()
        found = {int(name[: -len(SUFFIX)]) for name in names if SAMPLE.fullmatch(name)}
        # whatever else lies there is none of ours
        return {index for index in found if index // SHARD == shard}

    def write(
        self,
        index: int,
        generation: int,
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, Any],
    ) -> Path:
        """Write a sample. Once this returns, the sample is done, even if the power fails.

        Args:
            index: Number of the sample.
            generation: Of the claim that made it. The partial files of earlier claims are removed.
            tensors: What was sampled.
            facts: What JSON can hold and the request alone decides.

        Raises:
            OSError: The file could not be written; nothing of it is left.
        """
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        data = save(held, {METADATA: json.dumps(facts, sort_keys=True)})
        for earlier in range(generation):
            self.partial(index, earlier).unlink(missing_ok=True)
        path = self.path(index)
        write_atomically(path, data, self.partial(index, generation))
        return path

    def facts(self, index: int) -> dict[str, Any]:
        """The facts of a sample; reads the header of its file alone.

        Raises:
            InputError: There is no such file, or it is no sample of a job.
        """
        path = self.path(index)
        try:
            with safe_open(path, framework="pt") as file:
                found: dict[str, Any] = json.loads((file.metadata() or {})[METADATA])
        except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
            raise InputError(f"{path} is no sample of a job: {error!r}") from error
        return found

    def seal(self, index: int) -> dict[str, Any]:
        """Size and digest of a sample's file, by which damage is seen; empty if unreadable."""
        try:
            with self.path(index).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                return {"bytes": file.tell(), "sha256": digest}
        except OSError:
            return {}

    def load(self, index: int) -> dict[str, Tensor]:
        """The tensors of a sample; a sampler's is named `"sample"`, `[C, F, H, W]` for a video.

        Raises:
            InputError: There is no such file, or it is not readable.
        """
        try:
            return load_file(self.path(index))
        except (SafetensorError, OSError) as error:
            raise InputError(f"{self.path(index)} is not readable: {error!r}") from error


def list_shards(total: int) -> range:
    """The shards of a job of `total` samples."""
    return range((total + SHARD - 1) // SHARD)


def count_committed(store: Store, total: int) -> int:
    """How many of a job's `total` samples are done."""
    return sum(index < total for shard in list_shards(total) for index in store.committed(shard))


def open_folder(folder: Path, identity: Mapping[str, Any], resume: bool) -> bool:
    """Begin a job in a folder, or check that the job in it is the same one.

    Args:
        folder: The job's folder.
        identity: The facts that decide what is made, as JSON holds them.
        resume: Whether a job may be there already.

    Returns:
        Whether one was there.

    Raises:
        InputError: A job is there and `resume` is false, or it is another job. The message names
            every fact that differs with both values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "job.json"
    facts = json.loads(json.dumps({"schema": SCHEMA, **identity}))
    data = json.dumps(facts, indent=2, sort_keys=True).encode()
    if create_whole(path, data):
        return False
    if not resume:
        raise InputError(
            f"{folder} holds a job already; give --resume to continue it, or another --output"
        )
    found = read_identity(path)
    if found is None:
        write_atomically(path, data)
        return False
    differing = [
        f"  {name}: folder {there!r} / run {here!r}"
        for name, there, here in list_differences(found, facts)
    ]
    if differing:
        raise InputError(
            f"{folder} holds another job:\n" + "\n".join(differing) + "\nresume it with the same "
            "prompts and configuration, or give another --output"
        )
    return True


def read_identity(path: Path) -> Any:
    """The facts in `job.json`; None if its writer was killed before it wrote any.

    That can happen only on file systems without hard links, and before anything was sampled.

    Raises:
        InputError: It cannot be read, although the job has begun.
    """
    for wait in (0.0, *WAITS):  # somebody may be writing it just now
        time.sleep(wait)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            problem = error
    if path.is_file() and not any((path.parent / name).exists() for name in ("claims", "samples")):
        return None
    raise InputError(
        f"cannot read {path}: {problem}; give another --output, or put back the file of this job"
    )


def list_differences(one: Any, other: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """The places at which two JSON values differ, with both values.

    Example:
        >>> list_differences({"a": {"b": 1}}, {"a": {"b": 2}})
        [('a.b', 1, 2)]
    """
    if isinstance(one, dict) and isinstance(other, dict):
        found = []
        for key in sorted({*one, *other}):
            place = f"{where}.{key}" if where else key
            found += list_differences(one.get(key, "nothing"), other.get(key, "nothing"), place)
        return found
    return [] if one == other else [(where, one, other)]
