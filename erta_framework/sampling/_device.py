"""Where and how exactly a sampler computes: device, precision and autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from erta_framework.environment import list_accelerators
from erta_framework.errors import CapabilityError

PRECISIONS = {"32": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def check_precision(precision: str) -> None:
    """Refuse a precision that no sampler knows.

    Raises:
        CapabilityError: The name is unknown.
    """
    if precision not in PRECISIONS:
        raise CapabilityError(
            f"precision {precision!r} is unknown; use one of {', '.join(PRECISIONS)}"
        )


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context in which a network runs in this precision."""
    dtype = PRECISIONS[precision]
    if dtype is None:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def resolve_device(accelerator: str, devices: int | str) -> torch.device:
    """The device to sample on.

    Raises:
        CapabilityError: Several devices, or an accelerator that is not there.
    """
    if devices != 1:
        raise CapabilityError(
            f"devices={devices}: a process samples on one device; use devices=1, or "
            "Sampler(devices=...).sample_job(...), which starts a process a device"
        )
    there = list_accelerators()
    if accelerator == "auto":
        return torch.device(there[-1])
    if accelerator not in there:
        usable = ", ".join(there)
        raise CapabilityError(f"accelerator {accelerator!r} is not available; use auto, {usable}")
    return torch.device(accelerator)
