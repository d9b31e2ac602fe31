"""Stable Diffusion of every generation, AnimateDiff and other UNets."""

from __future__ import annotations

import functools
from typing import Any

import diffusers

from tiny_pipelines._family import (
    Family,
    build_model,
    build_pipeline,
    build_sd_vae,
    combine_inputs,
    drawn,
    flow,
    make_embeds,
    make_square,
)


def configure_unet() -> dict[str, Any]:
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


def build_unet(**config: Any) -> Any:
    """The UNet of Stable Diffusion."""
    return build_model(
        "UNet2DConditionModel",
        sample_size=8,
        out_channels=4,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **configure_unet(),
        **config,
    )


def configure_sdxl() -> dict[str, Any]:
    """What makes it the UNet of SDXL."""
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
        "use_linear_projection": True,
    }


def build_sdxl() -> Any:
    """SDXL."""
    return build_pipeline(
        "StableDiffusionXLPipeline",
        scheduler=diffusers.EulerDiscreteScheduler(),
        unet=build_unet(**configure_sdxl()),
    )


def build_sdxl_controlnet() -> Any:
    """SDXL with a ControlNet."""
    control = build_model(
        "ControlNetModel",
        conditioning_embedding_out_channels=(4, 8),
        **configure_unet(),
        **configure_sdxl(),
    )
    return build_pipeline(
        "StableDiffusionXLControlNetPipeline",
        scheduler=diffusers.EulerDiscreteScheduler(),
        unet=build_unet(**configure_sdxl()),
        controlnet=control,
        vae=build_sd_vae(),
    )


def build_sd(
    cls: str = "StableDiffusionPipeline", scheduler: str = "DDIMScheduler", **config: Any
) -> Any:
    """Stable Diffusion, or another pipeline of its UNet."""
    return build_pipeline(
        cls,
        scheduler=getattr(diffusers, scheduler)(steps_offset=1, **config),
        unet=build_unet(),
        vae=build_sd_vae(),
        requires_safety_checker=False,
    )


def build_unconditional() -> Any:
    """DDIM without any conditioning."""
    network = build_model(
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
    return build_pipeline("DDIMPipeline", unet=network, scheduler=scheduler)


def build_sd3() -> Any:
    """Stable Diffusion 3."""
    network = build_model(
        "SD3Transformer2DModel",
        sample_size=32,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
    )
    return build_pipeline("StableDiffusion3Pipeline", scheduler=flow(), transformer=network)


def build_animatediff() -> Any:
    """AnimateDiff on Stable Diffusion, with the frames in the batch."""
    unet = build_model(
        "UNet2DConditionModel",
        block_out_channels=(8, 8),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        norm_num_groups=2,
    )
    adapter = build_model(
        "MotionAdapter",
        block_out_channels=(8, 8),
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=4,
    )
    return build_pipeline(
        "AnimateDiffPipeline",
        unet=unet,
        motion_adapter=adapter,
        vae=build_sd_vae(),
        scheduler=diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False),
    )


POOLED_XL = make_embeds(6, 16, pooled_prompt_embeds=16)
UNET = ("unet.conv_out",)

FAMILIES: dict[str, Family] = {
    "sd": Family(
        functools.partial(build_sd, clip_sample=False),
        make_embeds(6, 16),
        make_square(16),
        make_square(32),
        inner=UNET,
    ),
    "sd-pndm": Family(
        functools.partial(build_sd, scheduler="PNDMScheduler", skip_prk_steps=True),
        make_embeds(6, 16),
        make_square(16),
        make_square(32),
        inner=UNET,
        forwards=lambda steps: steps + 1,
    ),
    "sd-heun": Family(
        functools.partial(build_sd, scheduler="HeunDiscreteScheduler"),
        make_embeds(6, 16),
        make_square(16),
        make_square(32),
        inner=UNET,
        forwards=lambda steps: 2 * steps - 1,
    ),
    "sd-img2img": Family(
        functools.partial(build_sd, "StableDiffusionImg2ImgPipeline", clip_sample=False),
        combine_inputs(make_embeds(6, 16), lambda batch: {"image": drawn(batch, 4, 8, 8)}),
        {"strength": 0.5},
        {"image": drawn(1, 4, 16, 16)},
        inner=UNET,
        skipped=lambda steps: steps // 2,
    ),
    "sdxl": Family(build_sdxl, POOLED_XL, make_square(64), make_square(32), inner=UNET),
    "sdxl-controlnet": Family(
        build_sdxl_controlnet,
        combine_inputs(POOLED_XL, lambda batch: {"image": drawn(batch, 3, 16, 16).sigmoid()}),
        make_square(16),
        make_square(32),
        inner=UNET,
    ),
    "sd3": Family(
        build_sd3, make_embeds(6, 32, pooled_prompt_embeds=64), make_square(32), make_square(64)
    ),
    "animatediff": Family(
        build_animatediff,
        make_embeds(6, 16),
        make_square(16, num_frames=2),
        make_square(32),
        inner=("unet.conv_out",),
        slow=True,
        layout="BCFHW",
    ),
    "unconditional": Family(
        build_unconditional,
        lambda batch: {"batch_size": batch},
        {"output_type": "np"},
        {"eta": 0.5},
        inner=UNET,
        callback=None,
    ),
}
