"""Tiny pipelines of UNets."""

from __future__ import annotations

import functools
from typing import Any

import diffusers

from tiny_pipelines.family import Family, drawn, embeds, made, pipeline, sd_vae, square, with_extra


def unet_config() -> dict[str, Any]:
    """What a UNet and its ControlNet have in common."""
    return {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "in_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "cross_attention_dim": 16,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
    }


def unet(**config: Any) -> Any:
    """The UNet of Stable Diffusion."""
    return made(
        "UNet2DConditionModel",
        sample_size=8,
        out_channels=4,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **unet_config(),
        **config,
    )


def sdxl_config() -> dict[str, Any]:
    """What makes it the UNet of SDXL."""
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
        "use_linear_projection": True,
    }


def sdxl() -> Any:
    """SDXL."""
    return pipeline(
        "StableDiffusionXLPipeline",
        scheduler=diffusers.EulerDiscreteScheduler(),
        unet=unet(**sdxl_config()),
    )


def sdxl_controlnet() -> Any:
    """SDXL with a ControlNet."""
    control = made(
        "ControlNetModel",
        conditioning_embedding_out_channels=(4, 8),
        **unet_config(),
        **sdxl_config(),
    )
    return pipeline(
        "StableDiffusionXLControlNetPipeline",
        scheduler=diffusers.EulerDiscreteScheduler(),
        unet=unet(**sdxl_config()),
        controlnet=control,
        vae=sd_vae(),
    )


def sd(
    cls: str = "StableDiffusionPipeline", scheduler: str = "DDIMScheduler", **config: Any
) -> Any:
    """Stable Diffusion, or another pipeline of its UNet."""
    return pipeline(
        cls,
        scheduler=getattr(diffusers, scheduler)(steps_offset=1, **config),
        unet=unet(),
        vae=sd_vae(),
        requires_safety_checker=False,
    )


def unconditional() -> Any:
    """DDIM without any conditioning."""
    network = made(
        "UNet2DModel",
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(4, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=2,
    )
    scheduler = diffusers.DDIMScheduler()
    return pipeline("DDIMPipeline", unet=network, scheduler=scheduler)


POOLED_XL = embeds(6, 16, pooled_prompt_embeds=16)
UNET = ("unet.conv_out",)

UNETS: dict[str, Family] = {
    "sdxl": Family(sdxl, POOLED_XL, square(64), square(32), inner=UNET),
    "sd": Family(
        functools.partial(sd, clip_sample=False), embeds(6, 16), square(16), square(32), inner=UNET
    ),
    "sd-pndm": Family(
        functools.partial(sd, scheduler="PNDMScheduler", skip_prk_steps=True),
        embeds(6, 16),
        square(16),
        square(32),
        inner=UNET,
        forwards=lambda steps: steps + 1,
    ),
    "sd-heun": Family(
        functools.partial(sd, scheduler="HeunDiscreteScheduler"),
        embeds(6, 16),
        square(16),
        square(32),
        inner=UNET,
        forwards=lambda steps: 2 * steps - 1,
    ),
    "sd-img2img": Family(
        functools.partial(sd, "StableDiffusionImg2ImgPipeline", clip_sample=False),
        with_extra(embeds(6, 16), lambda batch: {"image": drawn(batch, 4, 8, 8)}),
        {"strength": 0.5},
        {"image": drawn(1, 4, 16, 16)},
        inner=UNET,
        skipped=lambda steps: steps // 2,
    ),
    "sdxl-controlnet": Family(
        sdxl_controlnet,
        with_extra(POOLED_XL, lambda batch: {"image": drawn(batch, 3, 16, 16).sigmoid()}),
        square(16),
        square(32),
        inner=UNET,
    ),
    "unconditional": Family(
        unconditional,
        lambda batch: {"batch_size": batch},
        {"output_type": "np"},
        {"eta": 0.5},
        inner=UNET,
        callback=None,
    ),
}
