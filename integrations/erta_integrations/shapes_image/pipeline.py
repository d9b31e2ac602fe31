"""The image models inside diffusers' unmodified `FluxPipeline` and `StableDiffusionPipeline`.

Neither pipeline has a text encoder or a VAE: prompts are encoded by the model's own word embedding,
and its latents are pixels. Without a VAE both assume a spatial factor of 8, so they are asked for
128 x 128 pixels to get 16 x 16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import diffusers
import torch
from torch import Tensor

from erta_framework.errors import InputError
from erta_framework.extras import require_extra
from erta_framework.solvers import DDIM
from erta_integrations.shapes_image.model import (
    ShapesFlux,
    ShapesImage,
    ShapesUNet,
    pooled,
    unpacked,
)
from erta_integrations.shapes_wan.data import SIZE

SHIFT, SPATIAL = 3.0, 8
NOISE: dict[str, Any] = {
    "num_train_timesteps": DDIM().train_steps,
    "beta_start": DDIM().beta_start,
    "beta_end": DDIM().beta_end,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "trailing",
    "steps_offset": 1,  # unused with this spacing; the pipeline warns about anything else
}
FLOW: dict[str, Any] = {
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": SHIFT,
}
SCHEDULERS: Mapping[type[ShapesImage], Mapping[str, Callable[[], Any]]] = {
    ShapesFlux: {
        "flow_euler": partial(diffusers.FlowMatchEulerDiscreteScheduler, shift=SHIFT),
        "unipc": partial(diffusers.UniPCMultistepScheduler, **FLOW),
    },
    ShapesUNet: {
        "ddim": partial(diffusers.DDIMScheduler, **NOISE, clip_sample=False, set_alpha_to_one=True),
        "unipc": partial(diffusers.UniPCMultistepScheduler, **NOISE),
        "dpmsolver": partial(diffusers.DPMSolverMultistepScheduler, **NOISE),
    },
}
"""Schedulers of each model by name, the first its default.

`FluxPipeline` hands its schedulers a shift, which `DPMSolverMultistepScheduler` takes in one mode
only.
"""


def make_scheduler(model: type[ShapesImage], name: str | None = None) -> Any:
    """A new scheduler of `SCHEDULERS`; the model's default without a name.

    Raises:
        InputError: The model has no scheduler of that name.
    """
    offered = SCHEDULERS[model]
    chosen = next(iter(offered)) if name is None else name
    if chosen not in offered:
        raise InputError(
            f"scheduler {chosen!r} is unknown to {model.name}; give {' or '.join(offered)}"
        )
    return offered[chosen]()


def pipeline(model: ShapesImage, scheduler: str | None = None) -> Any:
    """The unmodified pipeline around a model's network; call it with what `request` gives.

    Args:
        model: `ShapesFlux` or `ShapesUNet`.
        scheduler: A name of `SCHEDULERS`.

    Raises:
        InputError: The model has no scheduler of that name.
        MissingExtraError: transformers, which the pipelines import, is not installed.
    """
    require_extra("transformers", extra="demo", wanted_by=f"{model.name} in a pipeline")
    made = make_scheduler(type(model), scheduler)
    if isinstance(model, ShapesFlux):
        pipe = diffusers.FluxPipeline(
            scheduler=made,
            transformer=model.transformer,
            vae=None,
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
        )
    else:
        assert isinstance(model, ShapesUNet)
        pipe = diffusers.StableDiffusionPipeline(
            scheduler=made,
            unet=model.unet,
            vae=None,
            text_encoder=None,
            tokenizer=None,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def request(
    model: ShapesImage,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    num_steps: int = 50,
    guidance_scale: float = 3.0,
) -> dict[str, Any]:
    """The arguments of one call of `pipeline(model)`, one prompt and one seed a sample.

    The noise of a sample depends on its seed alone, and is that of `Sampler`.

    Raises:
        InputError: A prompt has a word outside the vocabulary.
    """
    embeds, negative = model.encode([*prompts, *[""] * len(prompts)]).chunk(2)
    asked: dict[str, Any] = {
        "prompt_embeds": embeds,
        "negative_prompt_embeds": negative,
        "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
        "height": SIZE * SPATIAL,
        "width": SIZE * SPATIAL,
        "num_inference_steps": num_steps,
        "output_type": "latent",
    }
    if isinstance(model, ShapesFlux):
        return asked | {
            "pooled_prompt_embeds": pooled(embeds),
            "negative_pooled_prompt_embeds": pooled(negative),
            "true_cfg_scale": guidance_scale,
        }
    return asked | {"guidance_scale": guidance_scale}


def images(model: ShapesImage, output: Any) -> Tensor:
    """The images `[B, 3, 16, 16]` in what a pipeline returned."""
    latents: Tensor = output.images
    return unpacked(latents, SIZE // 2, SIZE // 2) if isinstance(model, ShapesFlux) else latents
