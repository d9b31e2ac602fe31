"""Stable Audio, the only pipeline whose latents are no pictures."""

from __future__ import annotations

from typing import Any

import diffusers

from tiny_pipelines._family import (
    Family,
    build_model,
    build_model_of,
    build_pipeline,
    make_pairs,
)


def build_stable_audio() -> Any:
    """Stable Audio, with latents `[B, C, L]`."""
    from diffusers.pipelines.stable_audio import StableAudioProjectionModel

    network = build_model(
        "StableAudioDiTModel",
        sample_size=4,
        in_channels=3,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        out_channels=3,
        cross_attention_dim=4,
        time_proj_dim=8,
        global_states_input_dim=8,
        cross_attention_input_dim=4,
    )
    projection = build_model_of(
        StableAudioProjectionModel,
        text_encoder_dim=4,
        conditioning_dim=4,
        min_value=0,
        max_value=32,
    )
    vae = build_model(
        "AutoencoderOobleck",
        encoder_hidden_size=6,
        downsampling_ratios=[1, 2],
        decoder_channels=3,
        decoder_input_channels=3,
        channel_multiples=[2, 4],
        sampling_rate=4,
    )
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(
        prediction_type="v_prediction", sigma_data=1.0, sigma_schedule="exponential"
    )
    return build_pipeline(
        "StableAudioPipeline",
        transformer=network,
        projection_model=projection,
        vae=vae,
        scheduler=scheduler,
    )


FAMILIES: dict[str, Family] = {
    "stable-audio": Family(
        build_stable_audio,
        make_pairs({"attention_mask": 6}, prompt_embeds=(6, 4)),
        {"audio_end_in_s": 2.0},
        {"audio_end_in_s": 1.0},
        callback="callback",
        layout="BCFHW",  # diffusers' FasterCache knows no layout without frames
    ),
}
