"""A sampler and its model for one process of a job."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from erta_framework.jobs import LAUNCHER, FabricConfig
from erta_framework.sampling._device import check_precision, resolve_device
from erta_framework.sampling._text_model import TextModel

if TYPE_CHECKING:
    from erta_framework.sampling._sampler import Sampler


def use_one_device(sampler: Sampler) -> Sampler:
    """The same sampler on one of its devices."""
    twin = copy.copy(sampler)
    twin.fabric, twin.launcher = FabricConfig(), LAUNCHER
    return twin


def open_worker(
    sampler: Sampler, model: TextModel, accelerator: str, precision: str
) -> tuple[Sampler, TextModel]:
    """The sampler of one process, on the device and in the precision that Fabric gives it.

    Args:
        sampler: On one device, see `use_one_device`.
        model: Passed on.
        accelerator: As of `Sampler`.
        precision: As of `Sampler`.

    Raises:
        CapabilityError: The accelerator is not there, or the precision is unknown.
    """
    twin = copy.copy(sampler)
    check_precision(precision)
    twin.device, twin.precision = resolve_device(accelerator, 1), precision
    return twin, model
