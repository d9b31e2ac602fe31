"""Tiny pipelines of worlds and sound: Cosmos, LTX-2 with its audio, Stable Audio."""

from __future__ import annotations

from typing import Any

import diffusers

from tiny_pipelines.family import (
    Family,
    Typed,
    embeds,
    flow,
    made,
    made_from,
    paired,
    pipeline,
    square,
    unipc,
)
from tiny_pipelines.video import FRAMES, wan_vae


def ltx2() -> Any:
    """LTX-2, which denoises video and audio in one network."""
    from diffusers.pipelines.ltx2 import LTX2TextConnectors
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    rope: dict[str, Any] = {"rope_double_precision": False, "rope_type": "split"}
    network = made(
        "LTX2VideoTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=2,
        caption_channels=16,
        **rope,
    )
    vae = made(
        "AutoencoderKLLTX2Video",
        latent_channels=4,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        down_block_types=("LTX2VideoDownBlock3D",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        upsample_type=("spatiotemporal",),
        patch_size=1,
    )
    audio_vae = made(
        "AutoencoderKLLTX2Audio",
        base_channels=4,
        ch_mult=(1,),
        num_res_blocks=1,
        resolution=32,
        latent_channels=2,
        mel_bins=8,
    )
    connectors = made_from(
        LTX2TextConnectors,
        caption_channels=16,
        text_proj_in_factor=2,
        video_connector_num_attention_heads=4,
        video_connector_attention_head_dim=4,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=4,
        audio_connector_attention_head_dim=4,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
        connector_rope_base_seq_len=32,
        **rope,
    )
    vocoder = made_from(
        LTX2Vocoder,
        in_channels=16,
        hidden_channels=8,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
    )
    return pipeline(
        "LTX2Pipeline",
        transformer=network,
        connectors=connectors,
        vae=vae,
        audio_vae=audio_vae,
        vocoder=vocoder,
        scheduler=flow(),
    )


def cosmos_network(**config: Any) -> Any:
    """The network of Cosmos 1 and 2; its padding mask would need torchvision."""
    return made(
        "CosmosTransformer3DModel",
        **{
            "in_channels": 16,
            "out_channels": 16,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 2,
            "mlp_ratio": 2,
            "text_embed_dim": 32,
            "adaln_lora_dim": 4,
            "max_size": (4, 32, 32),
            "concat_padding_mask": False,
            **config,
        },
    )


def cosmos() -> Any:
    """Cosmos 1 text-to-world, which calls its scheduler twice a step."""
    scheduler = diffusers.EDMEulerScheduler(
        sigma_max=80.0, sigma_schedule="karras", final_sigmas_type="sigma_min"
    )
    vae = made(
        "AutoencoderKLCosmos",
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=2,
        patch_size=4,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )
    return pipeline(
        "CosmosTextToWorldPipeline",
        transformer=cosmos_network(in_channels=4, out_channels=4),
        vae=vae,
        scheduler=scheduler,
        safety_checker=Typed(),
    )


def cosmos2() -> Any:
    """Cosmos-Predict2 text-to-image."""
    return pipeline(
        "Cosmos2TextToImagePipeline",
        transformer=cosmos_network(),
        vae=wan_vae(),
        scheduler=flow(use_karras_sigmas=True),
        safety_checker=Typed(),
    )


def cosmos25() -> Any:
    """Cosmos-Predict2.5, whose latents come with a mask of the given frames."""
    return pipeline(
        "Cosmos2_5_PredictBasePipeline",
        transformer=cosmos_network(in_channels=17),
        vae=wan_vae(),
        scheduler=unipc(),
        safety_checker=Typed(),
    )


def stable_audio() -> Any:
    """Stable Audio, with latents `[B, C, L]`."""
    from diffusers.pipelines.stable_audio import StableAudioProjectionModel

    network = made(
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
    projection = made_from(
        StableAudioProjectionModel,
        text_encoder_dim=4,
        conditioning_dim=4,
        min_value=0,
        max_value=32,
    )
    vae = made(
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
    return pipeline(
        "StableAudioPipeline",
        transformer=network,
        projection_model=projection,
        vae=vae,
        scheduler=scheduler,
    )


MASK = "prompt_attention_mask"
LTX2 = paired({MASK: 6}, prompt_embeds=(6, 32))
PLAIN = {
    "stg_scale": 0.0,
    "audio_stg_scale": 0.0,
    "modality_scale": 1.0,
    "audio_modality_scale": 1.0,
}

WORLDS: dict[str, Family] = {
    "ltx2": Family(ltx2, LTX2, square(32, num_frames=3, **PLAIN), square(64)),
    "ltx2-three-branches": Family(
        ltx2,
        LTX2,
        square(32, num_frames=3, spatio_temporal_guidance_blocks=[1]),
        square(64),
        calls=3,
        slow=True,
    ),
    "cosmos": Family(cosmos, embeds(6, 32), square(32, **FRAMES), square(64), calls=2),
    "cosmos-predict2": Family(cosmos2, embeds(6, 32), square(16), square(32), calls=2),
    "cosmos-predict2.5": Family(cosmos25, embeds(6, 32), square(16, **FRAMES), square(32), calls=2),
    "stable-audio": Family(
        stable_audio,
        paired({"attention_mask": 6}, prompt_embeds=(6, 4)),
        {"audio_end_in_s": 2.0},
        {"audio_end_in_s": 1.0},
        callback="callback",
    ),
}
