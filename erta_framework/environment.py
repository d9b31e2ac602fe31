"""What a measurement depends on besides the code: the machine and the installed versions.

Reports and benchmarks describe both with the functions here, so that their records have the same
keys everywhere.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

__all__ = [
    "collect_versions",
    "describe_machine",
    "is_shared",
    "list_accelerators",
    "read_processor_name",
    "use_fastest_threads",
]

QUIET = 0.5
"""Load of the last minute up to which a machine counts as free: one program half of the time."""
PACKAGES = ("erta-framework", "torch", "numpy", "diffusers", "torchmetrics")


def collect_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result; absent packages are left out.

    Example:
        >>> "torch" in collect_versions()
        True
    """
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def describe_machine(device: torch.device | None = None) -> dict[str, str | int | None]:
    """The machine as a flat record for JSON.

    Keys: `system`, `processor`, `cores` (those this process may use), `torch_threads`, and
    `accelerator`, which is None where the CPU computes.

    Args:
        device: Where the work runs; by default the GPU if torch sees one.

    Example:
        >>> describe_machine(torch.device("cpu"))["accelerator"] is None
        True
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": read_processor_name(),
        "cores": cores,
        "torch_threads": torch.get_num_threads(),
        "accelerator": _name_accelerator(device),
    }


def read_processor_name() -> str:
    """Model name of the processor where the system gives it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


@contextmanager
def use_fastest_threads(work: Callable[[], object], repeats: int = 3) -> Iterator[int]:
    """Let torch use one thread or its default number within the context, whichever is faster.

    A small network gains little from threads. Where other programs keep the cores busy, threads
    wait for each other and can be many times slower than one alone.

    Args:
        work: What is timed, such as one network call. It runs `2 * (repeats + 1)` times.
        repeats: Timed runs of each setting; the best counts.

    Yields:
        The chosen number of threads. The earlier number is restored afterwards.
    """
    before = torch.get_num_threads()
    try:
        seconds = {}
        for threads in sorted({1, before}):
            torch.set_num_threads(threads)
            work()
            seconds[threads] = min(_time_once(work) for _ in range(repeats))
        chosen = min(seconds, key=lambda threads: seconds[threads])
        torch.set_num_threads(chosen)
        yield chosen
    finally:
        torch.set_num_threads(before)


def _time_once(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _name_accelerator(device: torch.device | None) -> str | None:
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return None if device.type == "cpu" else device.type


def list_accelerators() -> tuple[str, ...]:
    """The kinds of devices that this machine has: `"cpu"`, and then the fastest last.

    Example:
        >>> "cpu" in list_accelerators()
        True
    """
    found = ["cpu"]
    if torch.backends.mps.is_available():
        found.append("mps")
    if torch.cuda.is_available():
        found.append("cuda")
    return tuple(found)


def is_shared() -> bool:
    """Whether other programs keep this machine busy, as its load of the last minute says.

    Asked before any work, so that the load is not one's own. Where the system gives no load,
    nothing is known and the answer is no.
    """
    if not hasattr(os, "getloadavg"):
        return False
    return os.getloadavg()[0] > QUIET
