"""What a measurement depends on besides the code: machine and versions."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("erta-framework", "torch", "diffusers", "torchmetrics")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter; absent packages are left out.

    Example:
        >>> "torch" in versions()
        True
    """
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine(device: torch.device | None = None) -> dict[str, str]:
    """Processor, usable cores, threads of torch, and the accelerator where one is used."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": str(cores),
        "torch threads": str(torch.get_num_threads()),
        "device": "cpu" if device is None else device.type,
    }
    if device is not None and device.type == "cuda":
        facts["accelerator"] = torch.cuda.get_device_name(device)
    return facts


def processor() -> str:
    """Name of the processor, as well as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
