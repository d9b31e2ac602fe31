"""Runs the models that ship with the package through the unmodified pipelines of diffusers."""

from erta_integrations.diffusers.bundled._in_pipeline import InPipeline
from erta_integrations.diffusers.bundled._pipeline_model import (
    BundledModel,
    PipelineModel,
    pipeline,
    pipeline_model,
    request,
    samples_of,
)
from erta_integrations.diffusers.bundled._sampler import PipelineSampler

__all__ = [
    "BundledModel",
    "InPipeline",
    "PipelineModel",
    "PipelineSampler",
    "pipeline",
    "pipeline_model",
    "request",
    "samples_of",
]
