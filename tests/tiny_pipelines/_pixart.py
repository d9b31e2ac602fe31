"""PixArt and what follows it: Sana, Latte and DiT."""

from __future__ import annotations

from typing import Any

import diffusers

from tiny_pipelines._family import (
    Family,
    build_model,
    build_pipeline,
    build_sd_vae,
    combine_inputs,
    configure_ada_norm,
    flow,
    make_embeds,
    make_square,
)
from tiny_pipelines._wan import build_wan_vae


def build_pixart() -> Any:
    """PixArt-Sigma, whose network also predicts a variance."""
    return build_pipeline(
        "PixArtSigmaPipeline",
        scheduler=diffusers.DPMSolverMultistepScheduler(),
        transformer=build_model("PixArtTransformer2DModel", **configure_ada_norm()),
    )


def build_sana() -> Any:
    """Sana."""
    network = build_model(
        "SanaTransformer2DModel",
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=8,
    )
    return build_pipeline("SanaPipeline", scheduler=flow(shift=3.0), transformer=network)


def build_sana_sprint() -> Any:
    """Sana-Sprint, on a scheduler whose timesteps hold the end of the last step too."""
    network = build_model(
        "SanaTransformer2DModel",
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=8,
        qk_norm="rms_norm_across_heads",
        guidance_embeds=True,
    )
    scheduler = diffusers.SCMScheduler()
    return build_pipeline("SanaSprintPipeline", transformer=network, scheduler=scheduler)


def build_sana_video() -> Any:
    """Sana-Video."""
    network = build_model(
        "SanaVideoTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=8,
        sample_size=8,
        rope_max_seq_len=32,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True
    )
    return build_pipeline(
        "SanaVideoPipeline", transformer=network, vae=build_wan_vae(), scheduler=scheduler
    )


def build_latte() -> Any:
    """Latte."""
    return build_pipeline(
        "LattePipeline",
        scheduler=diffusers.DDIMScheduler(),
        transformer=build_model("LatteTransformer3DModel", video_length=2, **configure_ada_norm()),
    )


def build_dit() -> Any:
    """DiT, conditioned on classes."""
    network = build_model(
        "DiTTransformer2DModel",
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    scheduler = diffusers.DDIMScheduler()
    return build_pipeline(
        "DiTPipeline", transformer=network, vae=build_sd_vae(), scheduler=scheduler
    )


MASK = "prompt_attention_mask"

FAMILIES: dict[str, Family] = {
    "pixart-sigma": Family(
        build_pixart,
        combine_inputs(
            make_embeds(6, 32, mask="prompt_attention_mask"),
            lambda batch: {"negative_prompt": None},
        ),
        make_square(32, use_resolution_binning=False),
        make_square(64),
        callback="callback",
    ),
    "sana": Family(
        build_sana,
        combine_inputs(
            make_embeds(6, 8, mask="prompt_attention_mask"), lambda batch: {"negative_prompt": None}
        ),
        make_square(128, use_resolution_binning=False),
        make_square(64),
    ),
    "sana-sprint": Family(
        build_sana_sprint,
        make_embeds(6, 8, negative=False, mask=MASK),
        make_square(128, use_resolution_binning=False, intermediate_timesteps=None),
        make_square(64),
    ),
    "sana-video": Family(
        build_sana_video,
        combine_inputs(make_embeds(6, 8, mask=MASK), lambda batch: {"negative_prompt": None}),
        make_square(32, frames=5, use_resolution_binning=False),
        make_square(64),
        layout="BCFHW",
    ),
    "latte": Family(
        build_latte,
        combine_inputs(make_embeds(6, 32), lambda batch: {"negative_prompt": None}),
        make_square(32, video_length=2, mask_feature=False),
        make_square(64),
        layout="BCFHW",
    ),
    "dit": Family(
        build_dit,
        lambda batch: {"class_labels": list(range(3, 3 + batch))},
        {"output_type": "np"},
        {"guidance_scale": 2.0},
        inner=("transformer.proj_out_2",),
        callback=None,
    ),
}
