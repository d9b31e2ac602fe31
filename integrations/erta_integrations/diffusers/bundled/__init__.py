"""Bundled: see the documentation."""

from erta_integrations.diffusers.bundled._pipeline_model import (
    InPipeline,
    PipelineModel,
    pipeline,
    pipeline_model,
    request,
    samples_of,
)
from erta_integrations.diffusers.bundled._sampler import PipelineSampler

__all__ = [
    "InPipeline",
    "PipelineModel",
    "PipelineSampler",
    "pipeline",
    "pipeline_model",
    "request",
    "samples_of",
]
