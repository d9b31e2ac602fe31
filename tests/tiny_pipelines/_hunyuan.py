"""Hunyuan's video and image pipelines."""

from __future__ import annotations

from typing import Any

import diffusers

from tiny_pipelines._family import (
    Family,
    build_model,
    build_pipeline,
    flow,
    make_embeds,
    make_pairs,
    make_square,
)
from tiny_pipelines._wan import FRAMES


def build_hunyuan() -> Any:
    """HunyuanVideo."""
    network = build_model(
        "HunyuanVideoTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )
    return build_pipeline("HunyuanVideoPipeline", scheduler=flow(shift=7.0), transformer=network)


def build_guider() -> Any:
    """A guider, which names the branches."""
    from diffusers.guiders import ClassifierFreeGuidance

    return ClassifierFreeGuidance(guidance_scale=3.0)


def build_hunyuan_video15() -> Any:
    """HunyuanVideo 1.5."""
    network = build_model(
        "HunyuanVideo15Transformer3DModel",
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=16,
        text_embed_2_dim=8,
        image_embed_dim=12,
        rope_axes_dim=(2, 2, 4),
        target_size=16,
        task_type="t2v",
    )
    vae = build_model(
        "AutoencoderKLHunyuanVideo15",
        latent_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    scheduler = flow(shift=7.0)
    return build_pipeline(
        "HunyuanVideo15Pipeline",
        transformer=network,
        vae=vae,
        scheduler=scheduler,
        guider=build_guider(),
    )


def build_hunyuan_image() -> Any:
    """HunyuanImage 2.1, guided by another guider in its first steps."""
    from diffusers.guiders import AdaptiveProjectedMixGuidance

    network = build_model(
        "HunyuanImageTransformer2DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=32,
        text_embed_2_dim=32,
        rope_axes_dim=(4, 4),
    )
    return build_pipeline(
        "HunyuanImagePipeline",
        transformer=network,
        scheduler=flow(shift=7.0),
        guider=AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=2),
        ocr_guider=AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=3),
    )


def build_hunyuan_dit() -> Any:
    """Hunyuan-DiT, whose later blocks take the outputs of the earlier ones."""
    network = build_model(
        "HunyuanDiT2DModel",
        sample_size=16,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        cross_attention_dim=32,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
        hidden_size=16,
        activation_fn="gelu-approximate",
        text_len=6,
        text_len_t5=6,
    )
    scheduler = diffusers.DDPMScheduler()
    return build_pipeline(
        "HunyuanDiTPipeline",
        transformer=network,
        scheduler=scheduler,
        requires_safety_checker=False,
    )


MASK = "prompt_attention_mask"
TWO = {"prompt_embeds_mask": 6, "prompt_embeds_mask_2": 4}

FAMILIES: dict[str, Family] = {
    "hunyuan-video": Family(
        build_hunyuan,
        make_embeds(6, 16, negative=False, mask="prompt_attention_mask", pooled_prompt_embeds=8),
        make_square(16, **FRAMES),
        make_square(32, **FRAMES),
        layout="BCFHW",
    ),
    "hunyuan-video-1.5": Family(
        build_hunyuan_video15,
        make_pairs(
            {"prompt_embeds_mask": 6, "prompt_embeds_mask_2": 4},
            prompt_embeds=(6, 16),
            prompt_embeds_2=(4, 8),
        ),
        make_square(16, num_frames=5),
        make_square(32),
        calls=2,
        callback=None,
        slow=True,
        layout="BCFHW",
    ),
    "hunyuan-image": Family(
        build_hunyuan_image,
        make_pairs(TWO, prompt_embeds=(6, 32), prompt_embeds_2=(4, 32)),
        make_square(64),
        make_square(128),
        calls=2,
    ),
    "hunyuan-dit": Family(
        build_hunyuan_dit,
        make_pairs(
            {MASK: 6, f"{MASK}_2": 6},
            prompt_embeds=(6, 32),
            prompt_embeds_2=(6, 32),
        ),
        make_square(64, use_resolution_binning=False),
        make_square(128),
    ),
}
