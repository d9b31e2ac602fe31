"""Calibration divided over ranks: profiles are sums, so each rank adds up its share."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from erta_framework.calibration import Profile
from erta_framework.errors import ErtaError, PolicyError
from erta_framework.jobs import CalibrationRequest
from erta_framework.sampling import Sampler, TextModel
from erta_integrations.fabric.jobs import list_shares, merge_shares


def calibrate_share(
    fabric: Fabric, sampler: Sampler, model: TextModel, request: CalibrationRequest
) -> Profile:
    """Calibrate on this rank's share of the prompts, and merge the profiles of all ranks.

    Prompt k has seed + k whichever rank runs it, so the sums are those of one process up to the
    order in which they are added.

    Returns:
        The merged profile, the same on every rank.

    Raises:
        PolicyError: Another rank's calibration failed.
        ErtaError: This rank's calibration failed.
        ProfileMismatchError: The ranks do not calibrate the same run; names what differs.
    """
    own = list_shares(len(request.prompts), fabric.world_size)[fabric.global_rank]
    prompts = request.prompts[own.start : own.stop]
    data, problem = b"", None
    try:
        if prompts:
            share = sampler.calibrate(
                model, prompts, seed=request.seed + own.start, profiler=request.profiler
            )
            data = to_bytes(share)
    except ErtaError as error:
        problem = error
    # a rank that failed gathers as well, so that the others do not wait for it
    parts = gather_bytes(fabric, data, problem is not None)
    if problem is not None:
        raise problem
    if parts is None:
        raise PolicyError("calibration failed on another rank; its message says why")
    return merge_shares((from_bytes(part) for part in parts if part), request)


def gather_bytes(fabric: Fabric, data: bytes, failed: bool) -> list[bytes] | None:
    """The bytes of every rank, in order of rank; None if a rank failed."""
    own = torch.tensor([len(data), int(failed)], device=fabric.device)
    every: Any = fabric.all_gather(own)
    sizes, failures = every.reshape(-1, 2).T.tolist()
    if any(failures):
        return None
    # tensors of one size are gathered, so each rank pads to the longest
    padded = torch.zeros(max(sizes), dtype=torch.uint8, device=fabric.device)
    if data:  # frombuffer refuses no bytes; a rank without prompts has no profile
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(padded)
    rows: Any = fabric.all_gather(padded)
    rows = rows.reshape(len(sizes), max(sizes)).cpu().numpy()
    return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]


def to_bytes(profile: Profile) -> bytes:
    """A profile as the bytes of its file."""
    with tempfile.TemporaryDirectory() as folder:
        return profile.save(Path(folder) / "profile").read_bytes()


def from_bytes(data: bytes) -> Profile:
    """The profile of a file's bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile"
        path.write_bytes(data)
        return Profile.load(path)
