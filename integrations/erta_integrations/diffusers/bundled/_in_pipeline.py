"""`InPipeline`: the base class of the bundled models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from erta_framework import Callback, Policy
from erta_integrations.diffusers.bundled._pipeline_model import PipelineModel, pipeline, request
from erta_integrations.diffusers.bundled._sampler import PipelineSampler
from erta_integrations.diffusers.modules import PlaceGroup, inspect_places


class InPipeline(nn.Module):
    """Base class of models that can be sampled through an unmodified pipeline."""

    @classmethod
    def pipeline_model(cls) -> PipelineModel:
        """How models of this class run inside a pipeline."""
        raise NotImplementedError

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompt embeddings `[B, words, D]`."""
        raise NotImplementedError

    def fingerprint(self) -> dict[str, str]:
        """Facts that identify the network."""
        raise NotImplementedError

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        raise NotImplementedError

    def pipeline_sampler(
        self, policies: Sequence[Policy] = (), callbacks: Sequence[Callback] = (), **options: Any
    ) -> PipelineSampler:
        """Make a sampler that runs this model through diffusers' unmodified pipeline.

        Args:
            policies: In call order.
            callbacks: Observers.
            options: The other arguments of `PipelineSampler`, such as `scheduler="unipc"`.

        Raises:
            CapabilityError: A policy needs something that the scheduler cannot do.
            InputError: The model has no such scheduler.
            MissingExtraError: transformers is not installed.
        """
        return PipelineSampler(policies, callbacks, through=self.pipeline_model(), **options)

    def inspect_places(self, prompt: str) -> list[PlaceGroup]:
        """Find the places of the network, and measure what they cost in a request of one step.

        Args:
            prompt: Of the request; `""` fits every model.

        Raises:
            InputError: The prompt has a word outside the vocabulary.
            MissingExtraError: transformers is not installed.
        """
        asked = request(self, [prompt], seeds=[0], num_steps=1)
        return inspect_places(pipeline(self), **asked)
