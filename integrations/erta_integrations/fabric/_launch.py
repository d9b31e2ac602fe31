"""Jobs through Lightning Fabric: its names, its precedence, and any launcher outside."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.strategies.single_device import SingleDeviceStrategy
from torch import nn

from erta_framework.calibration import Profile
from erta_framework.errors import CapabilityError, ConfigError, InputError
from erta_framework.jobs import (
    CalibrationRequest,
    FabricConfig,
    JobRequest,
    Summary,
    check_accelerator,
)
from erta_framework.sampling import Sampler, TextModel
from erta_integrations.fabric._calibration import calibrate_share
from erta_integrations.fabric.jobs import (
    SamplerSource,
    SampleSource,
    name_precision,
    open_source,
    run_job,
)

T = TypeVar("T")


class FabricLauncher:
    """Runs jobs through Lightning Fabric; the entry `fabric` of `erta_framework.launchers`."""

    def sample(self, request: JobRequest) -> Summary:
        """Run this process's part of a sampling job, and start the others where Fabric does.

        Raises:
            ConfigError: Fabric refuses the settings; says why.
            CapabilityError: The strategy splits one sample over ranks.
        """
        return launch(build_fabric(request.fabric), partial(sample_part, request=request))

    def calibrate(self, request: CalibrationRequest) -> tuple[Profile, bool]:
        """The profile of all prompts, on every rank, and whether this is rank 0.

        Raises:
            ConfigError: Fabric refuses the settings; says why.
            CapabilityError: The strategy splits one sample over ranks.
        """
        return launch(build_fabric(request.fabric), partial(calibrate_part, request=request))


def build_fabric(config: FabricConfig) -> Fabric:
    """A `Fabric` of these settings; a launcher outside decides what they leave open.

    `fabric run` sets `LT_*` variables, which Fabric reads itself and refuses to have contradicted.
    torchrun and srun say how many processes there are.

    Raises:
        ConfigError: This machine lacks the accelerator, or Fabric refuses the settings; says why.
    """
    given = {
        name: value
        for name in ("accelerator", "devices", "num_nodes", "strategy", "precision")
        if (value := getattr(config, name)) is not None
    }
    if "LT_CLI_USED" not in os.environ:
        given = {"devices": 1, **read_launch(), **given}
    check_accelerator(config.accelerator, "accelerator")
    try:
        return Fabric(**given)
    except Exception as error:
        raise ConfigError(f"Lightning Fabric refuses {given}: {error}") from error


def read_launch() -> dict[str, int]:
    """Devices and machines as a launcher outside arranged them; empty if there is none."""
    if TorchElasticEnvironment.detect():
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return {"devices": local, "num_nodes": int(os.environ["WORLD_SIZE"]) // local}
    if SLURMEnvironment.detect():
        nodes = int(os.environ.get("SLURM_NNODES", "1"))
        return {"devices": int(os.environ["SLURM_NTASKS"]) // nodes, "num_nodes": nodes}
    return {}


def launch(fabric: Fabric, function: Callable[[Fabric], T]) -> T:
    """Start the other processes and return what a function returns in this one."""
    require_whole_samples(fabric)
    if "LT_CLI_USED" in os.environ:  # `fabric run` made the processes, and Fabric its group
        return function(fabric)
    with warnings.catch_warnings():
        # every rank reads the same files; there is no data loader to divide
        warnings.filterwarnings("ignore", message=".*srun.*command is available.*")
        found: T = fabric.launch(function)
    return found


def require_whole_samples(fabric: Fabric) -> None:
    """Refuse a strategy whose ranks share one sample.

    Raises:
        CapabilityError: Names the strategy and those that work.
    """
    if not isinstance(fabric.strategy, DDPStrategy | SingleDeviceStrategy):
        raise CapabilityError(
            f"a job gives each rank whole samples, and {type(fabric.strategy).__name__} shares one "
            "model among ranks; use strategy=ddp, or sample in a loop of your own with "
            "setup(fabric, model)"
        )


def setup(fabric: Fabric, model: Any) -> Any:
    """Put a model on this rank's device, as the strategy of its Fabric needs it for sampling.

    Where each rank holds the whole model, the model is moved and put into evaluation mode, and not
    wrapped. DistributedDataParallel synchronises gradients, of which sampling has none, and hides
    the methods of the model. Any other strategy, such as FSDP, gets `fabric.setup_module`.

    Args:
        fabric: A launched Fabric.
        model: A module; anything else is returned as it is.

    Returns:
        The same model, or what the strategy made of it.

    Example:
        >>> fabric = Fabric(accelerator="cpu", devices=1)  # doctest: +SKIP
        >>> model = setup(fabric, load())  # doctest: +SKIP
    """
    if not isinstance(model, nn.Module):
        return model
    model.eval().requires_grad_(False)
    if isinstance(fabric.strategy, DDPStrategy | SingleDeviceStrategy):
        return fabric.to_device(model)
    return fabric.setup_module(model)


def sample_job(fabric: Fabric, sampler: Sampler, model: TextModel, request: JobRequest) -> Summary:
    """Run this rank's part of a job with a Fabric that you made and launched.

    Args:
        fabric: A launched Fabric.
        sampler: Its settings serve every request that overrides none.
        model: Encodes the prompts and predicts.
        request: Prompts, folder and settings; `open` and `fabric` are ignored.

    Raises:
        CapabilityError: The strategy splits one sample over ranks.
        InputError: The prompts are wrong, or the folder holds another job, or one and no resume was
            asked for.
    """
    require_whole_samples(fabric)
    return take_part(fabric, SamplerSource(sampler, setup(fabric, model), fabric.device), request)


def sample_part(fabric: Fabric, request: JobRequest) -> Summary:
    """One rank's part of a job, once it is launched.

    Raises:
        InputError: The request does not say what samples.
    """
    if request.open is None:
        raise InputError("this request opens no model; use sample_job(fabric, sampler, model, ...)")
    opened = request.open(fabric.device.type, to_precision(fabric))
    return take_part(fabric, open_source(opened, fabric.device, partial(setup, fabric)), request)


def take_part(fabric: Fabric, source: SampleSource, request: JobRequest) -> Summary:
    """One rank's part of a job, with what samples on it."""

    def agree(ready: bool) -> bool:
        total: Any = fabric.all_reduce(
            torch.tensor([float(ready)], device=fabric.device), reduce_op="sum"
        )
        return float(total) == fabric.world_size

    return run_job(request, source, (fabric.global_rank, fabric.world_size), agree)


def to_precision(fabric: Fabric) -> str:
    """The `Sampler`'s name of a Fabric's precision.

    Raises:
        CapabilityError: A `Sampler` has no such precision.
    """
    return name_precision(str(fabric.strategy.precision.precision))


def calibrate_part(fabric: Fabric, request: CalibrationRequest) -> tuple[Profile, bool]:
    """One rank's part of a calibration, once it is launched."""
    sampler, model = request.open(fabric.device.type, to_precision(fabric))
    twin = copy.copy(sampler)
    twin.device = fabric.device
    profile = calibrate_share(fabric, twin, setup(fabric, model), request)
    return profile, fabric.global_rank == 0
