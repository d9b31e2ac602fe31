"""CogVideoX, CogView and GLM-Image."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

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
from tiny_pipelines._wan import FRAMES


def build_cogvideox_network(**config: Any) -> Any:
    """CogVideoX' network."""
    return build_model(
        "CogVideoXTransformer3DModel",
        **{
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 2,
            "text_embed_dim": 32,
            "num_layers": 2,
            "sample_width": 4,
            "sample_height": 4,
            "sample_frames": 9,
            "patch_size": 2,
            "temporal_compression_ratio": 4,
            "max_text_seq_length": 8,
            **config,
        },
    )


def build_cogvideox(scheduler: str = "CogVideoXDDIMScheduler") -> Any:
    """CogVideoX text-to-video."""
    return build_pipeline(
        "CogVideoXPipeline",
        scheduler=getattr(diffusers, scheduler)(),
        transformer=build_cogvideox_network(),
    )


def build_cogvideox_i2v() -> Any:
    """CogVideoX image-to-video."""
    vae = build_model(
        "AutoencoderKLCogVideoX",
        in_channels=3,
        out_channels=3,
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    network = build_cogvideox_network(in_channels=8, use_rotary_positional_embeddings=True)
    return build_pipeline(
        "CogVideoXImageToVideoPipeline",
        vae=vae,
        scheduler=diffusers.CogVideoXDPMScheduler(),
        transformer=network,
    )


def build_cogview3() -> Any:
    """CogView3+."""
    network = build_model(
        "CogView3PlusTransformer2DModel",
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=2,
        text_embed_dim=32,
        time_embed_dim=8,
        condition_dim=2,
        pos_embed_max_size=32,
        sample_size=8,
    )
    scheduler = diffusers.CogVideoXDDIMScheduler()
    return build_pipeline(
        "CogView3PlusPipeline", transformer=network, scheduler=scheduler, vae=build_sd_vae()
    )


def build_cogview4() -> Any:
    """CogView4."""
    network = build_model(
        "CogView4Transformer2DModel",
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=4,
        out_channels=4,
        text_embed_dim=32,
        time_embed_dim=8,
        condition_dim=4,
        rope_axes_dim=(16, 16),
    )
    scheduler = flow(
        base_shift=0.25,
        max_shift=0.75,
        base_image_seq_len=256,
        use_dynamic_shifting=True,
        time_shift_type="linear",
    )
    return build_pipeline("CogView4Pipeline", scheduler=scheduler, transformer=network)


def build_glm() -> Any:
    """GLM-Image, with the tokens of its first stage given."""
    network = build_model(
        "GlmImageTransformer2DModel",
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=32,
        time_embed_dim=16,
        condition_dim=8,
        prior_vq_quantizer_codebook_size=32,
    )
    return build_pipeline("GlmImagePipeline", transformer=network, scheduler=flow())


FAMILIES: dict[str, Family] = {
    "cogvideox": Family(
        build_cogvideox,
        make_embeds(8, 32),
        make_square(32, **FRAMES),
        make_square(64, **FRAMES),
        layout="BFCHW",
    ),
    "cogvideox-i2v": Family(
        build_cogvideox_i2v,
        combine_inputs(
            make_embeds(8, 32), lambda batch: {"image": drawn(batch, 3, 32, 32).sigmoid()}
        ),
        make_square(32, **FRAMES),
        make_square(32, num_frames=17),
        layout="BFCHW",
    ),
    "cogview3-plus": Family(build_cogview3, make_embeds(6, 32), make_square(32), make_square(64)),
    "cogview4": Family(
        build_cogview4, make_embeds(6, 32), make_square(32), make_square(64), calls=2
    ),
    "glm-image": Family(
        build_glm,
        combine_inputs(
            make_embeds(6, 32),
            lambda batch: {"prior_token_ids": torch.arange(4).expand(batch, 4)},
        ),
        make_square(32),
        make_square(64, prior_token_ids=torch.arange(16)[None]),
        calls=2,
    ),
}
