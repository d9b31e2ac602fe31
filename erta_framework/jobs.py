"""Jobs over many devices as the core knows them: settings, requests and launchers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from erta_framework.environment import list_accelerators
from erta_framework.errors import CapabilityError, ConfigError, InputError
from erta_framework.plugins import Profiler, launchers, load_with_extra

if TYPE_CHECKING:
    from erta_framework.calibration import Profile
    from erta_framework.plugins import Policy

ACCELERATORS = {"cuda": "cuda", "gpu": "cuda", "mps": "mps"}
"""Accelerators that a machine may lack, by Fabric's names, and what torch calls them."""
LAUNCHER = "fabric"
"""Entry of `erta_framework.launchers` that runs jobs where no other is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FabricConfig:
    """Where a job runs, in the names of Lightning Fabric; None means not set.

    Other launchers read the same settings, and refuse those that mean nothing to them.

    Attributes:
        accelerator: `"auto"`, `"cpu"`, `"cuda"`, `"gpu"` or `"mps"`.
        devices: Number of devices of a machine, `"auto"`, or a list such as `"0,1"`.
        num_nodes: Number of machines.
        strategy: `"auto"` or one that gives each rank a whole model: `"ddp"`, `"ddp_spawn"`.
        precision: `"32-true"`, `"bf16-mixed"` or `"16-mixed"`.

    Example:
        >>> FabricConfig(devices=2).is_distributed
        True
    """

    accelerator: str | None = None
    devices: int | str | None = None
    num_nodes: int | None = None
    strategy: str | None = None
    precision: str | None = None

    @property
    def is_distributed(self) -> bool:
        """Whether more than one plain process is asked for."""
        return (
            self.devices not in (None, 1, "1")
            or self.num_nodes not in (None, 1)
            or self.strategy not in (None, "auto")
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JobConfig:
    """How a job is divided.

    Attributes:
        batch_size: Samples a batch. At 1 a sample depends on its prompt and seed alone; larger
            batches may change the last bits of its numbers.
        lease: Seconds without a heartbeat after which a worker loses the samples it claimed.

    Raises:
        InputError: A value is not above 0.
    """

    batch_size: int = 1
    lease: float = 60.0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"job.batch_size is {self.batch_size}, it must be at least 1")
        if not self.lease > 0:
            raise InputError(f"job.lease is {self.lease} seconds, it must be above 0")


@dataclass(frozen=True, slots=True)
class Summary:
    """The state of a job when a process leaves it; ranks other than 0 know their own part only.

    Attributes:
        total: Samples of the job.
        done: Samples whose output is in the folder; on other ranks, those made by this rank.
        failed: Index and error of each sample that failed.
        network_calls: Mean network calls of the done samples.
        speedup: Branch calls requested over network calls made, for the done samples.
        seconds: Wall seconds in this process.
        leader: Whether this process reports for all (rank 0).
    """

    total: int
    done: int
    failed: tuple[tuple[int, str], ...]
    network_calls: float | None
    speedup: float | None
    seconds: float
    leader: bool

    @property
    def complete(self) -> bool:
        """Whether every sample of the job is done."""
        return self.done == self.total


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """A sampling job, as a launcher receives it.

    Attributes:
        open: Makes `(sampler, model)`, or `(run, policies, options)` of a pipeline, for a kind of
            device and a precision such as `("cuda", "32")`. Each process calls it once it has its
            device. None where the caller brings sampler and model.
        prompts: A `.jsonl` file of requests, a text file with one prompt a line, or prompts.
        output: Folder of the job.
        seed: Sample k has seed + k unless its line says otherwise.
        resume: Continue a job that is in the folder, or join it while it runs.
        log_json: Print JSON lines instead of a progress bar.
        quiet: Print nothing.
        fabric: Where it runs.
        job: How it is divided.
        picture: Writes the picture of a sample: `(sample [C, ...], path without suffix) -> path`.
    """

    open: Callable[[str, str], Any] | None = None
    prompts: str | Path | Sequence[str]
    output: str | Path
    seed: int = 0
    resume: bool = False
    log_json: bool = False
    quiet: bool = False
    fabric: FabricConfig = FabricConfig()
    job: JobConfig = JobConfig()
    picture: Callable[[Any, Path], object] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRequest:
    """A calibration that is divided over ranks.

    Attributes:
        open: As of a `JobRequest`.
        prompts: Calibration prompts.
        profiler: Observes the runs.
        seed: Sample k has seed + k.
        fabric: Where it runs.

    Raises:
        CapabilityError: The profiler tries settings out on its samples.
    """

    open: Callable[[str, str], Any]
    prompts: tuple[str, ...]
    profiler: Policy
    seed: int = 0
    fabric: FabricConfig = FabricConfig()

    def __post_init__(self) -> None:
        if isinstance(self.profiler, Profiler) and (
            self.profiler.tries_before or self.profiler.tries_out
        ):
            raise CapabilityError(
                f"{self.profiler!r} tries settings out on all of its samples, and here every rank "
                "has some of them only; calibrate on one device, or without what is tried out "
                "(search=0, refine=0)"
            )


class Launcher(Protocol):
    """Runs jobs over several devices; made by an entry of `erta_framework.launchers`."""

    def sample(self, request: JobRequest) -> Summary:
        """Run this process's part of a sampling job."""
        ...

    def calibrate(self, request: CalibrationRequest) -> tuple[Profile, bool]:
        """The profile of all prompts, on every rank, and whether this is rank 0."""
        ...


def check_accelerator(name: str | None, where: str) -> None:
    """Refuse an accelerator that this machine does not have.

    Args:
        name: As of a `FabricConfig`.
        where: Who asks for it, such as `"fabric.accelerator"`.

    Raises:
        ConfigError: Names it, and what there is.
    """
    there = list_accelerators()
    if ACCELERATORS.get(str(name), "cpu") not in there:
        raise ConfigError(
            f"{where} is {name!r}, which this machine does not have; it has {', '.join(there)}. "
            "Write one of these, or auto"
        )


def is_launched() -> bool:
    """Whether torchrun, srun or the like started this process as one of several."""
    environ = os.environ
    if "LOCAL_RANK" in environ and environ.get("WORLD_SIZE", "1") != "1":
        return True
    interactive = environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return "SLURM_PROCID" in environ and environ.get("SLURM_NTASKS", "1") != "1" and not interactive


def load_launcher(name: str = LAUNCHER) -> Launcher:
    """A launcher of the catalogue.

    Args:
        name: Such as `"fabric"` or `"ray"`; a name of the catalogue, never an import path.

    Raises:
        MissingExtraError: What ours imports is not installed; names the extra.
        RegistryError: No distribution provides it, or its import failed otherwise.
    """
    launcher: Launcher = load_with_extra(launchers(), name, extra=name, what="launcher")()
    return launcher
