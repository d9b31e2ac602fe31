"""Stable Cascade, a prior and a decoder."""

from __future__ import annotations

from typing import Any

import diffusers

from tiny_pipelines._family import (
    Family,
    Typed,
    build_model,
    build_model_of,
    build_pipeline,
    combine_inputs,
    drawn,
    make_pairs,
    make_square,
)


def build_cascade_prior() -> Any:
    """The first stage of Stable Cascade."""
    network = build_model(
        "StableCascadeUNet",
        conditioning_dim=16,
        block_out_channels=(16, 16),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        clip_image_in_channels=8,
        switch_level=(False,),
        clip_text_in_channels=16,
        clip_text_pooled_in_channels=16,
    )
    return build_pipeline(
        "StableCascadePriorPipeline",
        prior=network,
        text_encoder=Typed(),
        scheduler=diffusers.DDPMWuerstchenScheduler(),
    )


def build_cascade_decoder() -> Any:
    """The second stage of Stable Cascade; its output stays in the latents of the VQ model."""
    from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel

    plain = ("SDCascadeResBlock", "SDCascadeTimestepBlock")
    network = build_model(
        "StableCascadeUNet",
        in_channels=4,
        out_channels=4,
        conditioning_dim=16,
        block_out_channels=(8, 16),
        num_attention_heads=(-1, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(2, 1),
        block_types_per_layer=(plain, (*plain, "SDCascadeAttnBlock")),
        clip_text_pooled_in_channels=16,
        effnet_in_channels=16,
        patch_size=2,
    )
    return build_pipeline(
        "StableCascadeDecoderPipeline",
        decoder=network,
        vqgan=build_model_of(PaellaVQModel, bottleneck_blocks=1, num_vq_embeddings=2),
        text_encoder=Typed(),
        scheduler=diffusers.DDPMWuerstchenScheduler(),
    )


CASCADE = make_pairs(prompt_embeds=(6, 16), prompt_embeds_pooled=(1, 16))

FAMILIES: dict[str, Family] = {
    "stable-cascade-prior": Family(
        build_cascade_prior, CASCADE, make_square(128), make_square(256), inner=("prior.embedding",)
    ),
    "stable-cascade-decoder": Family(
        build_cascade_decoder,
        combine_inputs(CASCADE, lambda batch: {"image_embeddings": drawn(batch, 16, 4, 4)}),
        {"guidance_scale": 2.0},
        {"image_embeddings": drawn(1, 16, 6, 6)},
        inner=("decoder.embedding",),
    ),
}
