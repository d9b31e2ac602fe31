"""The image models inside diffusers' unmodified `FluxPipeline` and `StableDiffusionPipeline`."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import diffusers
from torch import Tensor

from erta_bench.shapes_image.accuracy import shares
from erta_bench.shapes_image.model import ShapesFlux, ShapesUNet, pooled, unpacked
from erta_framework import CFG, Sampler
from erta_framework.sampling import DDIM, FlowAdamsBashforth2
from erta_integrations.diffusers.bundled import (
    PipelineModel,
    PipelineSampler,
    pipeline,
    request,
    samples_of,
)
from erta_integrations.shapes_wan.data import SIZE

__all__ = ["FLUX", "UNET", "pipeline", "request", "samples_of"]

SHIFT = 3.0
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
SHIFTED = math.log(SHIFT)
"""`FluxPipeline` hands its schedulers the logarithm of a shift, made from these two settings."""


def flux_dpmpp() -> Any:
    """DPM-Solver++ 2M on the sigmas of the others, whatever the size of the image."""
    dynamic = {"use_dynamic_shifting": True, "time_shift_type": "exponential"}
    made = diffusers.DPMSolverMultistepScheduler(**FLOW, **dynamic)
    made.register_to_config(base_shift=SHIFTED, max_shift=SHIFTED)
    return made


def flux_pooled(embeds: Tensor, negative: Tensor) -> dict[str, Tensor]:
    """One vector a prompt, which `FluxPipeline` asks for as well."""
    return {
        "pooled_prompt_embeds": pooled(embeds),
        "negative_pooled_prompt_embeds": pooled(negative),
    }


def flux_fine(num_steps: int, guidance_scale: float, batch_size: int) -> Sampler:
    """Second-order steps of the own loop, whose grid is the pipeline's."""
    return Sampler(
        solver=FlowAdamsBashforth2(shift=SHIFT),
        guidance=CFG(scale=guidance_scale),
        num_steps=num_steps,
        batch_size=batch_size,
    )


def unet_fine(num_steps: int, guidance_scale: float, batch_size: int) -> PipelineSampler:
    """Steps of DPM-Solver++ 2M; the own loop has no second-order solver for noise."""
    return PipelineSampler(
        through=UNET,
        scheduler="dpmpp",
        guidance_scale=guidance_scale,
        num_steps=num_steps,
        batch_size=batch_size,
    )


def images(output: Any) -> Tensor:
    """The images `[B, 3, 16, 16]` in what a pipeline returned."""
    found: Tensor = output.images
    return found


FLUX = PipelineModel(
    name=ShapesFlux.name,
    kind=ShapesFlux,
    pipeline="FluxPipeline",
    network="transformer",
    settings=dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")),
    schedulers={
        "flow_euler": partial(diffusers.FlowMatchEulerDiscreteScheduler, shift=SHIFT),
        "unipc": partial(diffusers.UniPCMultistepScheduler, **FLOW),
        "dpmpp": flux_dpmpp,
    },
    grid=f"shift {SHIFT:g}",
    samples=lambda output: unpacked(images(output), SIZE // 2, SIZE // 2),
    fine=flux_fine,
    shown=shares,
    guidance="true_cfg_scale",
    arguments=flux_pooled,
    parts=(
        r"^transformer_blocks\.\d+\.(attn|ff|ff_context)$",
        r"^single_transformer_blocks\.\d+\.(attn|proj_mlp)$",
    ),
)
WITHOUT = ("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor")
UNET = PipelineModel(
    name=ShapesUNet.name,
    kind=ShapesUNet,
    pipeline="StableDiffusionPipeline",
    network="unet",
    settings={**dict.fromkeys(WITHOUT), "requires_safety_checker": False},
    schedulers={
        "ddim": partial(diffusers.DDIMScheduler, **NOISE, clip_sample=False, set_alpha_to_one=True),
        "unipc": partial(diffusers.UniPCMultistepScheduler, **NOISE),
        "dpmpp": partial(diffusers.DPMSolverMultistepScheduler, **NOISE),
        "heun": partial(diffusers.HeunDiscreteScheduler, **NOISE),
    },
    grid="scaled-linear betas, trailing",
    samples=images,
    fine=unet_fine,
    shown=shares,
    batched=True,
)
