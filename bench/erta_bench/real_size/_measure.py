"""Seconds, efficiency, memory and synchronisations of a few methods at real size."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from erta_bench.core import Bench, Row, Value, average
from erta_bench.real_size._networks import RealNetwork
from erta_framework.errors import InputError
from erta_framework.session import Seam
from erta_integrations.diffusers import attach

COLUMNS = {
    "network": "network",
    "compiled": "compiled",
    "name": "row",
    "work": "work",
    "seconds": "seconds",
    "speedup": "speed",
    "efficiency": "eff.",
    "peak_gib": "peak GiB",
    "extra_gib": "more GiB",
    "syncs": "syncs",
}
WAITS = frozenset(
    {
        "cudaStreamSynchronize",
        "cudaDeviceSynchronize",
        "cudaEventSynchronize",
        "aten::_local_scalar_dense",
        "aten::nonzero",
        "aten::equal",
    }
)
"""Events of the profiler's trace in which the host waits for the device, or would on one."""
PROFILED = 4
"""Steps of the request that the profiler watches."""
GIB = 2**30
LINE = {"forecaster": {"basis": "newton", "order": 1}}
MODULES = {"kind": ["attention", "cross", "mlp"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What all rows share.

    Attributes:
        steps: Steps of a request.
        interval: Every so many steps a row computes.
        repeats: Requests of each row; the least seconds count.
        device: Where the network runs.
        dtype: Of the weights.
        backend: Of `torch.compile`, for the compiled rows.

    Raises:
        InputError: There are too few steps to skip any.
    """

    steps: int = 10
    interval: int = 2
    repeats: int = 2
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    backend: str = "inductor"

    def __post_init__(self) -> None:
        if self.steps < max(PROFILED, self.interval + 1) or self.interval < 2 or self.repeats < 1:
            raise InputError(
                f"{self.steps} steps, interval {self.interval}, {self.repeats} repeats: give at "
                f"least {PROFILED} steps, an interval from 2 up to one below them, and one repeat"
            )


@dataclass(frozen=True, slots=True)
class Way:
    """A way to run a request.

    Attributes:
        name: Name of the row.
        policies: What is attached; None attaches nothing.
        seam: What a reused step leaves out.
    """

    name: str
    policies: Sequence[Any] | None = None
    seam: str = Seam.LATENT


def list_ways(interval: int) -> list[Way]:
    """Nothing attached, an engine that skips nothing, and the three seams at the same interval."""
    every = {"skip_policy": {"every": interval}}
    return [
        Way("untouched"),
        Way("attached, nothing skipped", []),
        Way("whole outputs, reused", [every]),
        Way("whole outputs, on a line", [every, LINE]),
        Way("block stack, reused", [every], Seam.TRUNK),
        # what keeping costs where nothing is left out
        Way("attention and MLPs, never left out", [reuse_modules(1)]),
        Way("attention and MLPs, reused", [reuse_modules(interval)]),
    ]


def reuse_modules(interval: int) -> dict[str, Any]:
    """Attention and MLPs kept, and run at every so many steps."""
    when = {"refresh_interval": {"interval": interval, "first": 1}}
    return {"at": {"sites": MODULES, "when": when}}


def measure_real_size(
    networks: Sequence[RealNetwork],
    setup: Setup,
    *,
    compiled: Sequence[bool] = (False, True),
    command: str = "real-size",
    say: Callable[[str], None] = lambda text: None,
) -> Bench:
    """Run every way on every network, eager and compiled.

    Args:
        networks: The networks.
        setup: What all rows share.
        compiled: Whether blocks are compiled; both, by default.
        command: Named in the result.
        say: Told what runs.
    """
    rows: list[Row] = []
    for network in networks:
        for compiling in compiled:
            pipe = network.build(setup.device, setup.dtype)
            if compiling:
                pipe.transformer.compile_repeated_blocks(backend=setup.backend)
            found: list[Row] = []
            for way in list_ways(setup.interval):
                say(f"{network.name}, {'compiled' if compiling else 'eager'}: {way.name}")
                facts: Row = {"network": network.name, "compiled": "yes" if compiling else "no"}
                row = {**facts, **measure_way(pipe, network, way, setup)}
                found.append(compare_with_untouched(row, found[0] if found else row))
            rows += found
            del pipe
            gc.collect()
            if setup.device.type == "cuda":
                torch.cuda.empty_cache()
    settings: dict[str, Value] = {
        "steps": setup.steps,
        "interval": setup.interval,
        "repeats": setup.repeats,
        "dtype": str(setup.dtype),
        "device": describe_device(setup.device),
    }
    return Bench(command, rows, COLUMNS, settings, section="network")


def measure_way(pipe: Any, network: RealNetwork, way: Way, setup: Setup) -> Row:
    """Warm one way up, time it, and look at its trace."""
    device, dtype = setup.device, setup.dtype
    with _attached(pipe, way) as run:
        # as many steps as the policies need to have computed and left out once
        pipe(**network.make_request(device, dtype, max(PROFILED, setup.interval + 1)))
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        requests = [network.make_request(device, dtype, setup.steps) for _ in range(setup.repeats)]
        seconds = [time_request(pipe, request, device) for request in requests]
        peak = torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None
        full = network.branches * setup.steps
        work = 1.0 if run is None else run.traces[-1].work / full
        syncs = count_syncs(pipe, network.make_request(device, dtype, PROFILED), device)
    return {
        "name": way.name,
        "status": "measured",
        "work": work,
        "seconds": min(seconds),
        "seconds_mean": average(seconds),
        "peak_gib": peak,
        "syncs_all": syncs,
    }


def compare_with_untouched(row: Row, untouched: Row) -> Row:
    """The row with what is relative to the pipeline that nothing is attached to."""
    speedup = float(untouched["seconds"] or 0) / float(row["seconds"] or 1)
    more = None
    if row["peak_gib"] is not None:
        more = float(row["peak_gib"]) - float(untouched["peak_gib"] or 0)
    return {
        **row,
        "speedup": speedup,
        "efficiency": speedup * float(row["work"] or 0),
        "syncs": int(row["syncs_all"] or 0) - int(untouched["syncs_all"] or 0),
        "extra_gib": more,
    }


def count_syncs(pipe: Any, request: Mapping[str, Any], device: torch.device) -> int:
    """Times that the host waits for the device in a request, by the profiler's trace."""
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if device.type == "cuda" else []
    with profile(activities=activities) as seen:
        pipe(**request)
    return sum(event.count for event in seen.key_averages() if event.key in WAITS)


def time_request(pipe: Any, request: Mapping[str, Any], device: torch.device) -> float:
    """Wall seconds of a request, until the device is done."""
    _wait(device)
    clock = time.perf_counter()
    pipe(**request)
    _wait(device)
    return time.perf_counter() - clock


def describe_device(device: torch.device) -> str:
    """What the network ran on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


@contextmanager
def _attached(pipe: Any, way: Way) -> Iterator[Any]:
    """The attachment, or None for the untouched pipeline."""
    if way.policies is None:
        yield None
        return
    with attach(pipe, way.policies, seam=way.seam) as run:
        yield run


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
