"""How a bundled model runs inside an unmodified pipeline: one frozen description of each model.

The pipelines have neither text encoder nor VAE: prompts are encoded by the model's own word
embedding, and latents are pixels. Without a VAE every pipeline assumes a spatial factor of 8, so
it is asked for 128 x 128 pixels to get 16 x 16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from torch import Tensor, nn

from erta_framework import Callback, Policy
from erta_framework.errors import InputError
from erta_framework.optional_dependencies import require_extra
from erta_framework.sampling import TextSampler

if TYPE_CHECKING:
    from erta_integrations.diffusers.bundled._sampler import PipelineSampler

SPATIAL = 8
"""What pipelines assume of a VAE that is not there."""


def no_arguments(embeds: Tensor, negative: Tensor) -> dict[str, Any]:
    """A request needs nothing beside what all have."""
    return {}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PipelineModel:
    """How a model runs inside a pipeline.

    Attributes:
        name: Name of the model.
        kind: Class of the model.
        pipeline: Name of the pipeline's class in diffusers.
        network: Name of the denoising network, in the model and in the pipeline.
        settings: What else the pipeline is made with; text encoders and VAE are None.
        schedulers: Schedulers by name, the first the default.
        grid: What all schedulers share, in words for a report.
        samples: The samples `[B, *latent_shape]` in what the pipeline returned.
        fine: Second-order sampling, nearly the exact solution, by number of steps, guidance scale
            and samples a batch.
        guidance: The pipeline's name of the guidance scale.
        arguments: What else a request needs, by the embeddings of prompts and of empty prompts.
        batched: Whether both branches of guidance go through the network in one call.
        layout: Order of the latents' dimensions.
        parts: Patterns of the names of attentions and feed-forwards, for caches of parts.
        shown: Share of samples whose pixels show each word of their prompt, and `all` of them.
    """

    name: str
    kind: type[nn.Module]
    pipeline: str
    network: str
    settings: Mapping[str, Any]
    schedulers: Mapping[str, Callable[[], Any]]
    grid: str
    samples: Callable[[Any], Tensor]
    fine: Callable[[int, float, int], TextSampler]
    shown: Callable[[Tensor, Sequence[str]], Mapping[str, float]]
    guidance: str = "guidance_scale"
    arguments: Callable[[Tensor, Tensor], dict[str, Any]] = no_arguments
    batched: bool = False
    layout: str = "BCHW"
    parts: tuple[str, ...] = field(default=())

    @property
    def default(self) -> str:
        """Name of the default scheduler."""
        return next(iter(self.schedulers))

    def make_scheduler(self, name: str | None = None) -> Any:
        """A new scheduler; the default one without a name.

        Raises:
            InputError: The model has no scheduler of that name.
        """
        chosen = self.default if name is None else name
        if chosen not in self.schedulers:
            raise InputError(
                f"scheduler {chosen!r} is unknown to {self.name}; "
                f"give {' or '.join(self.schedulers)}"
            )
        return self.schedulers[chosen]()


class InPipeline(nn.Module):
    """A model that can be sampled through an unmodified pipeline; its class says how."""

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
        """Samples through diffusers' unmodified pipeline instead of the own loop.

        Args:
            policies: In call order.
            callbacks: Observers.
            options: The other arguments of `PipelineSampler`, such as `scheduler="unipc"`.

        Raises:
            CapabilityError: A policy needs something that the scheduler cannot do.
            InputError: The model has no such scheduler.
            MissingExtraError: transformers is not installed.
        """
        from erta_integrations.diffusers.bundled._sampler import PipelineSampler

        return PipelineSampler(policies, callbacks, through=self.pipeline_model(), **options)


def pipeline_model(model: object) -> PipelineModel:
    """How a model runs inside a pipeline, by its type.

    Raises:
        InputError: It does not say.
    """
    if not isinstance(model, InPipeline):
        raise InputError(
            f"{type(model).__name__} does not say how it runs inside a pipeline; use a bundled "
            "model such as shapes-wan, or make it an InPipeline with pipeline_model()"
        )
    return model.pipeline_model()


def pipeline(
    model: InPipeline, scheduler: str | None = None, through: PipelineModel | None = None
) -> Any:
    """The unmodified pipeline around a model's network; call it with what `request` gives.

    Args:
        model: The model.
        scheduler: A name of its `schedulers`; None is the default.
        through: How it runs, where that is not what its class says, such as with more schedulers.

    Raises:
        InputError: The model has no scheduler of that name.
        MissingExtraError: transformers, which the pipelines import, is not installed.
    """
    through = through or pipeline_model(model)
    require_extra("transformers", extra="demo", wanted_by=f"{through.name} in a pipeline")
    network = {through.network: getattr(model, through.network)}
    made = getattr(diffusers, through.pipeline)(
        scheduler=through.make_scheduler(scheduler), **network, **through.settings
    )
    made.set_progress_bar_config(disable=True)
    return made


def request(
    model: InPipeline,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    num_steps: int = 50,
    guidance_scale: float = 3.0,
) -> dict[str, Any]:
    """The arguments of one call of a model's pipeline, one prompt and one seed a sample.

    The noise of a sample depends on its seed alone, and is that of `Sampler`.

    Raises:
        InputError: A prompt has a word outside the vocabulary.
    """
    through = pipeline_model(model)
    embeds, negative = model.encode([*prompts, *[""] * len(prompts)]).chunk(2)
    height, width = model.latent_shape[-2:]
    return {
        "prompt_embeds": embeds,
        "negative_prompt_embeds": negative,
        "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
        "height": height * SPATIAL,
        "width": width * SPATIAL,
        "num_inference_steps": num_steps,
        through.guidance: guidance_scale,
        "output_type": "latent",
        **through.arguments(embeds, negative),
    }


def samples_of(model: InPipeline, output: Any) -> Tensor:
    """The samples `[B, *latent_shape]` in what a model's pipeline returned."""
    return pipeline_model(model).samples(output)
