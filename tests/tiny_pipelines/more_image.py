"""More tiny image pipelines: transformers and cascades that the others do not stand for."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import Tensor

from tiny_pipelines.family import (
    Family,
    Typed,
    drawn,
    embeds,
    flow,
    image_vae,
    made,
    made_from,
    paired,
    pipeline,
    sd_vae,
    square,
    with_extra,
)
from tiny_pipelines.references import flux2_vae


def flux_like(cls: str, network: str, **config: Any) -> Any:
    """A pipeline whose network has Flux' two lists of blocks."""
    transformer = made(
        network,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        **config,
    )
    return pipeline(cls, transformer=transformer, vae=image_vae(), scheduler=flow())


def bria() -> Any:
    """Bria."""
    network = made(
        "BriaTransformer2DModel",
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=[2, 2, 4],
    )
    return pipeline("BriaPipeline", transformer=network, vae=sd_vae(), scheduler=flow())


def ovis() -> Any:
    """Ovis-Image."""
    return flux_like("OvisImagePipeline", "OvisImageTransformer2DModel", out_channels=4)


def prx() -> Any:
    """PRX."""
    network = made(
        "PRXTransformer2DModel",
        in_channels=4,
        patch_size=2,
        context_in_dim=8,
        hidden_size=8,
        mlp_ratio=2.0,
        num_heads=2,
        depth=2,
        axes_dim=[2, 2],
    )
    return pipeline("PRXPipeline", transformer=network, vae=sd_vae(), scheduler=flow())


def hunyuan_image() -> Any:
    """HunyuanImage 2.1, guided by another guider in its first steps."""
    from diffusers.guiders import AdaptiveProjectedMixGuidance

    network = made(
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
    return pipeline(
        "HunyuanImagePipeline",
        transformer=network,
        scheduler=flow(shift=7.0),
        guider=AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=2),
        ocr_guider=AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=3),
    )


def hunyuan_dit() -> Any:
    """Hunyuan-DiT, whose later blocks take the outputs of the earlier ones."""
    network = made(
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
    return pipeline(
        "HunyuanDiTPipeline",
        transformer=network,
        scheduler=scheduler,
        requires_safety_checker=False,
    )


def cogview3() -> Any:
    """CogView3+."""
    network = made(
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
    return pipeline("CogView3PlusPipeline", transformer=network, scheduler=scheduler, vae=sd_vae())


def lumina() -> Any:
    """Lumina-Next."""
    network = made(
        "LuminaNextDiT2DModel",
        sample_size=4,
        patch_size=2,
        in_channels=4,
        hidden_size=16,
        num_layers=2,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        learn_sigma=True,
        cross_attention_dim=8,
    )
    return pipeline("LuminaPipeline", transformer=network, vae=sd_vae(), scheduler=flow())


def krea2() -> Any:
    """Krea 2, whose prompt has the hidden states of several layers."""
    network = made(
        "Krea2Transformer2DModel",
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    return pipeline("Krea2Pipeline", transformer=network, scheduler=flow())


def ernie() -> Any:
    """Ernie-Image."""
    network = made(
        "ErnieImageTransformer2DModel",
        hidden_size=32,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=32,
        in_channels=4,
        out_channels=4,
        text_in_dim=16,
        rope_axes_dim=(4, 6, 6),
    )
    return pipeline("ErnieImagePipeline", transformer=network, vae=flux2_vae(1), scheduler=flow())


def nucleus() -> Any:
    """Nucleus-Image, whose last layers are mixtures of experts."""
    network = made(
        "NucleusMoEImageTransformer2DModel",
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
        moe_enabled=False,
        capacity_factors=[8.0, 8.0],
    )
    return pipeline("NucleusMoEImagePipeline", transformer=network, scheduler=flow())


def glm() -> Any:
    """GLM-Image, with the tokens of its first stage given."""
    network = made(
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
    return pipeline("GlmImagePipeline", transformer=network, scheduler=flow())


def sana_sprint() -> Any:
    """Sana-Sprint, on a scheduler whose timesteps hold the end of the last step too."""
    network = made(
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
    return pipeline("SanaSprintPipeline", transformer=network, scheduler=scheduler)


def cascade_prior() -> Any:
    """The first stage of Stable Cascade."""
    network = made(
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
    return pipeline(
        "StableCascadePriorPipeline",
        prior=network,
        text_encoder=Typed(),
        scheduler=diffusers.DDPMWuerstchenScheduler(),
    )


def cascade_decoder() -> Any:
    """The second stage of Stable Cascade; its output stays in the latents of the VQ model."""
    from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel

    plain = ("SDCascadeResBlock", "SDCascadeTimestepBlock")
    network = made(
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
    return pipeline(
        "StableCascadeDecoderPipeline",
        decoder=network,
        vqgan=made_from(PaellaVQModel, bottleneck_blocks=1, num_vq_embeddings=2),
        text_encoder=Typed(),
        scheduler=diffusers.DDPMWuerstchenScheduler(),
    )


def ernie_inputs(batch: int) -> dict[str, Any]:
    """A list of embeddings, one a sample."""
    return {
        "prompt_embeds": [drawn(6, 16, seed=k) for k in range(batch)],
        "negative_prompt_embeds": [drawn(6, 16, seed=50 + k) for k in range(batch)],
    }


def ones(batch: int) -> Tensor:
    """A mask of six tokens that are all there."""
    return torch.ones(batch, 6, dtype=torch.bool)


def no_negative(batch: int) -> dict[str, Any]:
    """For pipelines whose default negative prompt is the empty string."""
    return {"negative_prompt": None}


MASK = "prompt_attention_mask"
TWO = {"prompt_embeds_mask": 6, "prompt_embeds_mask_2": 4}
CASCADE = paired(prompt_embeds=(6, 16), prompt_embeds_pooled=(1, 16))

MORE_IMAGE: dict[str, Family] = {
    "bria": Family(bria, embeds(6, 32), square(32), square(64)),
    "ovis-image": Family(
        ovis, with_extra(embeds(6, 32), no_negative), square(8), square(16), calls=2
    ),
    "prx": Family(
        prx,
        embeds(6, 8, mask=MASK),
        square(32, use_resolution_binning=False),
        square(64),
        inner=("transformer.final_layer",),
        batches=False,
    ),
    "hunyuan-image": Family(
        hunyuan_image,
        paired(TWO, prompt_embeds=(6, 32), prompt_embeds_2=(4, 32)),
        square(64),
        square(128),
        calls=2,
    ),
    "hunyuan-dit": Family(
        hunyuan_dit,
        paired(
            {MASK: 6, f"{MASK}_2": 6},
            prompt_embeds=(6, 32),
            prompt_embeds_2=(6, 32),
        ),
        square(64, use_resolution_binning=False),
        square(128),
    ),
    "cogview3-plus": Family(cogview3, embeds(6, 32), square(32), square(64)),
    "lumina": Family(
        lumina,
        embeds(6, 8, mask=MASK),
        square(32),
        square(64),
        inner=("transformer.norm_out",),
    ),
    "krea2": Family(
        krea2,
        with_extra(
            paired(prompt_embeds=(6, 2, 16)),
            lambda batch: {
                "prompt_embeds_mask": ones(batch),
                "negative_prompt_embeds_mask": ones(batch),
            },
        ),
        square(32),
        square(64),
        calls=2,
        inner=("transformer.final_layer",),
    ),
    "ernie-image": Family(
        ernie,
        ernie_inputs,
        square(16, use_pe=False),
        square(32),
        inner=("transformer.final_linear",),
    ),
    "nucleus-image": Family(
        nucleus, embeds(7, 16, mask="prompt_embeds_mask"), square(32), square(64), calls=2
    ),
    "glm-image": Family(
        glm,
        with_extra(
            embeds(6, 32),
            lambda batch: {"prior_token_ids": torch.arange(4).expand(batch, 4)},
        ),
        square(32),
        square(64, prior_token_ids=torch.arange(16)[None]),
        calls=2,
    ),
    "sana-sprint": Family(
        sana_sprint,
        embeds(6, 8, negative=False, mask=MASK),
        square(128, use_resolution_binning=False, intermediate_timesteps=None),
        square(64),
    ),
    "stable-cascade-prior": Family(
        cascade_prior, CASCADE, square(128), square(256), inner=("prior.embedding",)
    ),
    "stable-cascade-decoder": Family(
        cascade_decoder,
        with_extra(CASCADE, lambda batch: {"image_embeddings": drawn(batch, 16, 4, 4)}),
        {"guidance_scale": 2.0},
        {"image_embeddings": drawn(1, 16, 6, 6)},
        inner=("decoder.embedding",),
    ),
}
