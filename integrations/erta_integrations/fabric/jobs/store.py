"""The outputs of a job: one file a sample that is there whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from erta_framework.errors import InputError
from erta_integrations.fabric.jobs.division import SHARD

SCHEMA = "erta_framework.job/1"
METADATA = "erta"
"""Key of the safetensors metadata that holds the JSON facts of a sample."""


class Store:
    """The samples in a job's folder, `samples/<shard>/<index>.safetensors`.

    A file holds the tensors of a sample and, in its header, the JSON facts that belong to it, so
    that renaming it into place is the one moment at which the sample is done. It holds nothing
    that depends on when or where it was made: equal requests give equal bytes.

    Args:
        folder: The job's folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder) / "samples"

    def path(self, index: int) -> Path:
        """Where the output of a sample is."""
        return self.folder / f"{index // SHARD:05d}" / f"{index:07d}.safetensors"

    def has(self, index: int) -> bool:
        """Whether a sample is done."""
        return self.path(index).exists()

    def committed(self, shard: int) -> set[int]:
        """The samples of a shard that are done."""
        try:
            names = os.listdir(self.folder / f"{shard:05d}")
        except FileNotFoundError:
            return set()
        return {int(name.partition(".")[0]) for name in names if name.endswith(".safetensors")}

    def write(
        self,
        index: int,
        generation: int,
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, Any],
    ) -> Path:
        """Write a sample: afterwards it is done, even if the power fails.

        Raises:
            OSError: It could not be written; nothing of it is left.
        """
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        data = save(held, {METADATA: json.dumps(facts, sort_keys=True)})
        path = self.path(index)
        # a successor takes the remains of its predecessors away
        for earlier in range(generation):
            self.partial(index, earlier).unlink(missing_ok=True)
        write_atomically(path, data, self.partial(index, generation))
        return path

    def partial(self, index: int, generation: int) -> Path:
        """The file that a claim writes to before it is done."""
        return self.path(index).with_name(f".{index:07d}.{generation}.partial")

    def facts(self, index: int) -> dict[str, Any]:
        """What the file of a sample says about it, from its header alone.

        Raises:
            InputError: There is no such file, or it is none of a job.
        """
        path = self.path(index)
        try:
            with safe_open(path, framework="pt") as file:
                found: dict[str, Any] = json.loads((file.metadata() or {})[METADATA])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise InputError(f"{path} is no sample of a job: {error!r}") from error
        return found

    def load(self, index: int) -> dict[str, Tensor]:
        """The tensors of a sample.

        Raises:
            InputError: There is no such file, or it is not readable.
        """
        try:
            return load_file(self.path(index))
        except (SafetensorError, OSError) as error:
            raise InputError(f"{self.path(index)} is not readable: {error!r}") from error


def write_atomically(path: Path, data: bytes, partial: Path) -> None:
    """Write a file that is there whole or not at all, and stays after a power failure.

    Raises:
        OSError: It could not be written; what was begun is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_folder(folder: Path, identity: Mapping[str, Any], resume: bool) -> bool:
    """Begin a job in a folder, or check that the one in it is the same.

    Args:
        folder: The job's folder.
        identity: Facts that decide what is made, as JSON holds them.
        resume: Whether a job may be there already.

    Returns:
        Whether there was one.

    Raises:
        InputError: A job is there and `resume` was not given, or it is another one; names every
            fact that differs as folder / run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "job.json"
    facts = json.loads(json.dumps({"schema": SCHEMA, **identity}))
    partial = folder / f".job.{os.getpid()}.{time.monotonic_ns()}.partial"
    try:
        write_atomically(partial, json.dumps(facts, indent=2, sort_keys=True).encode(), partial)
        os.link(partial, path)  # unlike a rename, it never replaces another's
        return False
    except FileExistsError:
        pass
    finally:
        partial.unlink(missing_ok=True)
    found = read_identity(path)
    if not resume:
        raise InputError(
            f"{folder} holds a job already; give --resume to continue it, or another --output"
        )
    differing = [
        f"  {name}: folder {there!r} / run {here!r}"
        for name, there, here in differences(found, facts)
    ]
    if differing:
        raise InputError(
            f"{folder} holds another job:\n" + "\n".join(differing) + "\nresume it with the same "
            "prompts and configuration, or give another --output"
        )
    return True


def read_identity(path: Path) -> dict[str, Any]:
    """What the job in a folder is.

    Raises:
        InputError: The file is no identity of a job.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds {found!r}, not the facts of a job")
    return found


def differences(one: Any, other: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """The places at which two JSON values differ, with both values.

    Example:
        >>> differences({"a": {"b": 1}}, {"a": {"b": 2}})
        [('a.b', 1, 2)]
    """
    if isinstance(one, dict) and isinstance(other, dict):
        found = []
        for key in sorted({*one, *other}):
            place = f"{where}.{key}" if where else key
            found += differences(one.get(key, "nothing"), other.get(key, "nothing"), place)
        return found
    return [] if one == other else [(where, one, other)]
