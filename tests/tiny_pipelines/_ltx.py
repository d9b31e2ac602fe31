"""LTX-Video, and LTX-2 with its audio."""

from __future__ import annotations

from typing import Any

from tiny_pipelines._family import (
    Family,
    build_model,
    build_model_of,
    build_pipeline,
    flow,
    make_embeds,
    make_pairs,
    make_square,
)
from tiny_pipelines._wan import FRAMES


def build_ltx() -> Any:
    """LTX-Video."""
    network = build_model(
        "LTXVideoTransformer3DModel",
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=32,
    )
    return build_pipeline("LTXPipeline", scheduler=flow(), transformer=network)


def build_ltx2() -> Any:
    """LTX-2, which denoises video and audio in one network."""
    from diffusers.pipelines.ltx2 import LTX2TextConnectors
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    rope: dict[str, Any] = {"rope_double_precision": False, "rope_type": "split"}
    network = build_model(
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
    vae = build_model(
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
    audio_vae = build_model(
        "AutoencoderKLLTX2Audio",
        base_channels=4,
        ch_mult=(1,),
        num_res_blocks=1,
        resolution=32,
        latent_channels=2,
        mel_bins=8,
    )
    connectors = build_model_of(
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
    vocoder = build_model_of(
        LTX2Vocoder,
        in_channels=16,
        hidden_channels=8,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
    )
    return build_pipeline(
        "LTX2Pipeline",
        transformer=network,
        connectors=connectors,
        vae=vae,
        audio_vae=audio_vae,
        vocoder=vocoder,
        scheduler=flow(),
    )


MASK = "prompt_attention_mask"
LTX2 = make_pairs({MASK: 6}, prompt_embeds=(6, 32))
PLAIN = {
    "stg_scale": 0.0,
    "audio_stg_scale": 0.0,
    "modality_scale": 1.0,
    "audio_modality_scale": 1.0,
}

FAMILIES: dict[str, Family] = {
    "ltx": Family(
        build_ltx,
        make_embeds(8, 32, mask="prompt_attention_mask"),
        make_square(64, **FRAMES),
        make_square(96, **FRAMES),
        layout="BCFHW",
    ),
    "ltx2": Family(
        build_ltx2, LTX2, make_square(32, num_frames=3, **PLAIN), make_square(64), layout="BCFHW"
    ),
    "ltx2-three-branches": Family(
        build_ltx2,
        LTX2,
        make_square(32, num_frames=3, spatio_temporal_guidance_blocks=[1]),
        make_square(64),
        calls=3,
        slow=True,
        layout="BCFHW",
    ),
}
