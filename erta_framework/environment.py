"""What a measurement depends on besides the code: machine and versions."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def fastest_threads(work: Callable[[], object], repeats: int = 3) -> Iterator[int]:
    """Within the context torch uses one thread or its default number, whichever is faster here.

    A small network gains little from threads, and where other programs keep the cores busy its
    threads wait for each other: many times slower than one thread alone.

    Args:
        work: What is timed, such as one network call; it runs `2 * (repeats + 1)` times.
        repeats: Timed runs each; the best counts.
    """
    before = torch.get_num_threads()
    try:
        seconds = {}
        for threads in sorted({1, before}):
            torch.set_num_threads(threads)
            work()
            seconds[threads] = min(_seconds(work) for _ in range(repeats))
        chosen = min(seconds, key=lambda threads: seconds[threads])
        torch.set_num_threads(chosen)
        yield chosen
    finally:
        torch.set_num_threads(before)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def processor() -> str:
    """Name of the processor, as well as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
