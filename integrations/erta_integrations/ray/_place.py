"""How many workers of which kind a job has, from settings in Fabric's names."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from erta_framework.errors import ConfigError
from erta_framework.jobs import ACCELERATORS, FabricConfig
from erta_integrations.fabric.jobs import name_precision

log = logging.getLogger(__name__)
RESOURCES = {"cpu": "CPU", "cuda": "GPU"}
"""Accelerators that Ray hands out, and what it calls them."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the workers of a job run.

    Attributes:
        accelerator: `"cpu"` or `"cuda"`.
        count: Number of workers, on all machines together.
        precision: As of `Sampler`.
    """

    accelerator: str
    count: int
    precision: str


def read_place(config: FabricConfig, resources: Mapping[str, float]) -> Place:
    """The workers that settings ask for, on a cluster that has these resources.

    Args:
        config: Settings in Fabric's names.
        resources: What `ray.cluster_resources()` returned.

    Raises:
        ConfigError: A setting means nothing to Ray, or the cluster lacks the accelerator.
        CapabilityError: A `Sampler` has no such precision.

    Example:
        >>> read_place(FabricConfig(devices="auto"), {"CPU": 16.0, "GPU": 2.0})
        Place(accelerator='cuda', count=2, precision='32')
    """
    check_settings(config)
    accelerator = read_accelerator(config.accelerator, resources)
    there = int(resources.get(RESOURCES[accelerator], 0))
    count = read_count(config.devices, there)
    if count > there:
        log.warning(
            "%d workers are asked for, and the cluster has %d %s; the others start when machines "
            "join it",
            count,
            there,
            RESOURCES[accelerator],
        )
    precision = "32-true" if config.precision in (None, "32") else config.precision
    return Place(accelerator, count, name_precision(precision))


def check_settings(config: FabricConfig) -> None:
    """Refuse settings that mean nothing to Ray, whatever the cluster has.

    Raises:
        ConfigError: Names the setting, its value and the remedy.
    """
    if config.strategy not in (None, "auto"):
        raise ConfigError(
            f"fabric.strategy is {config.strategy!r}, but with launcher=ray every worker has a "
            "whole model; leave it out"
        )
    if config.num_nodes not in (None, 1):
        raise ConfigError(
            f"fabric.num_nodes is {config.num_nodes}, but Ray decides on which machines workers "
            "run; leave it out, and write the workers of all machines as fabric.devices"
        )
    devices = config.devices
    if devices in (None, "auto"):
        return
    if (isinstance(devices, str) and not devices.isdecimal()) or int(devices or 0) < 1:
        raise ConfigError(
            f"fabric.devices is {devices!r}, but Ray decides which devices workers have; write "
            "how many workers, or auto"
        )


def read_accelerator(name: str | None, resources: Mapping[str, float]) -> str:
    """The kind of device of each worker: by default a GPU where the cluster has any.

    Raises:
        ConfigError: Ray or this cluster does not have it.
    """
    if name in (None, "auto"):
        return "cuda" if resources.get("GPU") else "cpu"
    kind = ACCELERATORS.get(str(name), str(name))
    if kind not in RESOURCES:
        raise ConfigError(
            f"fabric.accelerator is {name!r}, which Ray does not hand out; write auto, cpu or cuda"
        )
    if not resources.get(RESOURCES[kind]):
        shown = ", ".join(f"{resources.get(each, 0):g} {each}" for each in RESOURCES.values())
        raise ConfigError(
            f"fabric.accelerator is {name!r}, but the cluster has {shown}; add such a machine "
            "first, or write auto"
        )
    return kind


def read_count(devices: int | str | None, there: int) -> int:
    """The number of workers: one, a number, or all that the cluster has devices for."""
    if devices is None:
        return 1
    return max(1, there) if devices == "auto" else int(devices)
