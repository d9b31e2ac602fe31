"""What a process of a job opened, as a source of samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from erta_framework.errors import CapabilityError
from erta_integrations.fabric.jobs._pipeline_source import PipelineSource
from erta_integrations.fabric.jobs._sample_source import SamplerSource, SampleSource

PRECISIONS = {"32-true": "32", "bf16-mixed": "bf16-mixed", "16-mixed": "16-mixed"}
"""Fabric's names of the precisions that a `Sampler` has."""


def open_source(opened: Any, device: torch.device, place: Callable[[Any], Any]) -> SampleSource:
    """What samples in this process: a sampler and its model, or a pipeline.

    Args:
        opened: What the `open` of a `JobRequest` returned.
        device: Where this process samples.
        place: Puts a model on this device, ready to sample.
    """
    if isinstance(opened, tuple) and len(opened) == 2:
        sampler, model = opened
        return SamplerSource(sampler, place(model), device)
    return PipelineSource(*opened)


def name_precision(name: str) -> str:
    """The `Sampler`'s name of one of Fabric's precisions.

    Raises:
        CapabilityError: A `Sampler` has no such precision.
    """
    if name not in PRECISIONS:
        raise CapabilityError(f"precision {name!r} is none of a job; use {', '.join(PRECISIONS)}")
    return PRECISIONS[name]
