"""Calibration divided over ranks: profiles are sums, so each rank adds up its share."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from erta_framework.calibration import Profile
from erta_framework.errors import ErtaError, PolicyError
from erta_framework.jobs import CalibrationRequest
from erta_framework.sampling import Sampler, TextModel


def calibrate_shares(
    fabric: Fabric, sampler: Sampler, model: TextModel, request: CalibrationRequest
) -> Profile:
    """Calibrate on this rank's share of the prompts and merge the profiles of all ranks.

    Prompt k has seed + k whichever rank runs it, so that the sums are those of one process up to
    the order in which they are added.

    Raises:
        PolicyError: This rank's calibration failed, or another's did.
        ProfileMismatchError: The ranks do not calibrate the same run; names what differs.
    """
    prompts, world = request.prompts, fabric.world_size
    first, last = (len(prompts) * (fabric.global_rank + k) // world for k in (0, 1))
    data, problem = b"", None
    try:
        if first < last:
            share = sampler.calibrate(
                model, prompts[first:last], seed=request.seed + first, profiler=request.profiler
            )
            data = packed(share)
    except ErtaError as error:
        problem = error
    parts = gathered(fabric, data, problem is not None)
    if problem is not None:
        raise problem
    if parts is None:
        raise PolicyError("calibration failed on another rank; its message says why")
    merged = Profile.merge([unpacked(part) for part in parts if part])
    return merged.with_provenance(
        prompts=hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16],
        seeds=f"{request.seed}..{request.seed + len(prompts) - 1}",
    )


def gathered(fabric: Fabric, data: bytes, failed: bool) -> list[bytes] | None:
    """The bytes of every rank, in order of rank; None if one of them failed."""
    if fabric.world_size == 1:
        return None if failed else [data]
    own = torch.tensor([len(data), int(failed)], device=fabric.device)
    told: Any = fabric.all_gather(own)
    if bool(told[:, 1].any()):
        return None
    sizes = [int(size) for size in told[:, 0]]
    padded = torch.zeros(max(sizes), dtype=torch.uint8, device=fabric.device)
    if data:  # frombuffer refuses none; a rank without prompts has no profile
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(padded)
    rows: Any = fabric.all_gather(padded)
    return [as_bytes(row[:size]) for row, size in zip(rows, sizes, strict=True)]


def as_bytes(row: Tensor) -> bytes:
    """A tensor of bytes as bytes."""
    return row.cpu().numpy().tobytes()


def packed(profile: Profile) -> bytes:
    """A profile as the bytes of its file."""
    with tempfile.TemporaryDirectory() as folder:
        return profile.save(Path(folder) / "profile").read_bytes()


def unpacked(data: bytes) -> Profile:
    """The profile of a file's bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile"
        path.write_bytes(data)
        return Profile.load(path)
