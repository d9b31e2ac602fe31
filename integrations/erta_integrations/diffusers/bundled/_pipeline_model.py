"""How a bundled model runs inside an unmodified pipeline: one frozen description per model.

The pipelines have neither text encoder nor VAE. The model's own word embedding encodes prompts, and
latents are pixels. Without a VAE every pipeline assumes a spatial factor of 8, so it is asked for
128 x 128 pixels to get 16 x 16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import diffusers
import torch
from torch import Tensor, nn

from erta_framework.errors import InputError
from erta_framework.optional_dependencies import require_extra
from erta_framework.sampling import Solver

SPATIAL = 8
"""The spatial factor that pipelines assume if there is no VAE."""


def no_arguments(embeds: Tensor, negative: Tensor) -> dict[str, Any]:
    """No arguments beside those of every request."""
    return {}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PipelineModel:
    """How a model runs inside a pipeline.

    Attributes:
        name: Name of the model.
        kind: Class of the model.
        pipeline: Name of the pipeline's class in diffusers.
        network: Name of the denoising network, in the model and in the pipeline.
        settings: Other arguments of the pipeline's class; text encoders and VAE are None.
        schedulers: Schedulers by name; the first is the default.
        grid: What all schedulers have in common, in words for a report.
        samples: Takes the samples `[B, *latent_shape]` from what the pipeline returned.
        solver: A solver of the own loop with the process and the grid of the default scheduler.
        guidance: The pipeline's argument for the guidance scale.
        arguments: Other arguments of a request, from the embeddings of prompts and empty prompts.
        batched: Whether one network call computes both guidance branches.
        layout: Order of the latents' dimensions.
        parts: Patterns of the names of attentions and feed-forwards, for caches of submodules.
        shown: Measures the share of samples whose pixels show each word of their prompt, and
            `all` of them.
    """

    name: str
    kind: type[nn.Module]
    pipeline: str
    network: str
    settings: Mapping[str, Any]
    schedulers: Mapping[str, Callable[[], Any]]
    grid: str
    samples: Callable[[Any], Tensor]
    solver: Solver
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
        """Make a new scheduler; the default one if there is no name.

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


class BundledModel(Protocol):
    """What a pipeline needs of a model; `InPipeline` is the base class of such models."""

    @classmethod
    def pipeline_model(cls) -> PipelineModel:
        """How models of this class run inside a pipeline."""
        ...

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompt embeddings `[B, words, D]`."""
        ...

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        ...


def pipeline_model(model: object) -> PipelineModel:
    """How a model runs inside a pipeline, as its class says.

    Raises:
        InputError: The class does not say.
    """
    describe = getattr(model, "pipeline_model", None)
    if describe is None:
        raise InputError(
            f"{type(model).__name__} does not say how it runs inside a pipeline; use a bundled "
            "model such as shapes-wan, or make it an InPipeline with pipeline_model()"
        )
    found: PipelineModel = describe()
    return found


def pipeline(
    model: BundledModel, scheduler: str | None = None, through: PipelineModel | None = None
) -> Any:
    """Build the unmodified pipeline around a model's network; call it with `**request(...)`.

    Args:
        model: The model.
        scheduler: One of the names in its `schedulers`; None is the default.
        through: How it runs, if not as its class says, such as with more schedulers.

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
    model: BundledModel,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    num_steps: int = 50,
    guidance_scale: float = 3.0,
) -> dict[str, Any]:
    """The arguments of one call of a model's pipeline, with a prompt and a seed per sample.

    The noise of a sample depends on its seed alone, and is the same as in `Sampler`.

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


def samples_of(model: BundledModel, output: Any) -> Tensor:
    """Take the samples `[B, *latent_shape]` from what a model's pipeline returned."""
    return pipeline_model(model).samples(output)
