"""Caching on unmodified diffusers pipelines."""

from erta_integrations.diffusers._attach import Attachment, attach
from erta_integrations.diffusers._loading import PipelineRun, load
from erta_integrations.diffusers.pipeline import CAPABILITIES, Capability, Support
from erta_integrations.diffusers.trunk import inspect

__all__ = [
    "CAPABILITIES",
    "Attachment",
    "Capability",
    "PipelineRun",
    "Support",
    "attach",
    "inspect",
    "load",
]
