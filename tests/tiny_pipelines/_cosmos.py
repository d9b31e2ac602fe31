"""Cosmos, which makes worlds."""

from __future__ import annotations

from typing import Any

import diffusers

from tiny_pipelines._family import (
    Family,
    Typed,
    build_model,
    build_pipeline,
    flow,
    make_embeds,
    make_square,
    unipc,
)
from tiny_pipelines._wan import FRAMES, build_wan_vae


def build_cosmos_network(**config: Any) -> Any:
    """The network of Cosmos 1 and 2; its padding mask would need torchvision."""
    return build_model(
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


def build_cosmos() -> Any:
    """Cosmos 1 text-to-world, which calls its scheduler twice a step."""
    scheduler = diffusers.EDMEulerScheduler(
        sigma_max=80.0, sigma_schedule="karras", final_sigmas_type="sigma_min"
    )
    vae = build_model(
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
    return build_pipeline(
        "CosmosTextToWorldPipeline",
        transformer=build_cosmos_network(in_channels=4, out_channels=4),
        vae=vae,
        scheduler=scheduler,
        safety_checker=Typed(),
    )


def build_cosmos2() -> Any:
    """Cosmos-Predict2 text-to-image."""
    return build_pipeline(
        "Cosmos2TextToImagePipeline",
        transformer=build_cosmos_network(),
        vae=build_wan_vae(),
        scheduler=flow(use_karras_sigmas=True),
        safety_checker=Typed(),
    )


def build_cosmos25() -> Any:
    """Cosmos-Predict2.5, whose latents come with a mask of the given frames."""
    return build_pipeline(
        "Cosmos2_5_PredictBasePipeline",
        transformer=build_cosmos_network(in_channels=17),
        vae=build_wan_vae(),
        scheduler=unipc(),
        safety_checker=Typed(),
    )


FAMILIES: dict[str, Family] = {
    "cosmos": Family(
        build_cosmos,
        make_embeds(6, 32),
        make_square(32, **FRAMES),
        make_square(64),
        calls=2,
        layout="BCFHW",
    ),
    "cosmos-predict2": Family(
        build_cosmos2, make_embeds(6, 32), make_square(16), make_square(32), calls=2, layout="BCFHW"
    ),
    "cosmos-predict2.5": Family(
        build_cosmos25,
        make_embeds(6, 32),
        make_square(16, **FRAMES),
        make_square(32),
        calls=2,
        layout="BCFHW",
    ),
}
