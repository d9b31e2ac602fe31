"""Tiny image pipelines of transformers."""

from __future__ import annotations

import functools
from typing import Any

import diffusers

from tiny_pipelines.family import (
    Family,
    ada_norm_config,
    drawn,
    embeds,
    flow,
    image_vae,
    made,
    pipeline,
    sd_vae,
    square,
    with_extra,
)


def flux_network(**config: Any) -> Any:
    """Flux' network."""
    return made(
        "FluxTransformer2DModel",
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        **config,
    )


def flux(cls: str = "FluxPipeline") -> Any:
    """Flux, or another pipeline of its network."""
    return pipeline(cls, vae=image_vae(), scheduler=flow(), transformer=flux_network())


def qwen_network() -> Any:
    """Qwen-Image's network."""
    return made(
        "QwenImageTransformer2DModel",
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )


def qwen() -> Any:
    """Qwen-Image."""
    return pipeline("QwenImagePipeline", scheduler=flow(), transformer=qwen_network())


def sd3() -> Any:
    """Stable Diffusion 3."""
    network = made(
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
    return pipeline("StableDiffusion3Pipeline", scheduler=flow(), transformer=network)


def pixart() -> Any:
    """PixArt-Sigma, whose network also predicts a variance."""
    return pipeline(
        "PixArtSigmaPipeline",
        scheduler=diffusers.DPMSolverMultistepScheduler(),
        transformer=made("PixArtTransformer2DModel", **ada_norm_config()),
    )


def sana() -> Any:
    """Sana."""
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
    )
    return pipeline("SanaPipeline", scheduler=flow(shift=3.0), transformer=network)


def lumina2() -> Any:
    """Lumina 2."""
    network = made(
        "Lumina2Transformer2DModel",
        sample_size=4,
        patch_size=2,
        in_channels=4,
        hidden_size=8,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=1,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(64, 32, 32),
        cap_feat_dim=8,
    )
    return pipeline("Lumina2Pipeline", scheduler=flow(), transformer=network)


def hidream() -> Any:
    """HiDream."""
    network = made(
        "HiDreamImageTransformer2DModel",
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=[32, 16],
        text_emb_dim=64,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=(0, 1, 0, 1),
    )
    pipe = pipeline("HiDreamImagePipeline", scheduler=flow(), transformer=network)
    pipe.default_sample_size = 4  # else every request is scaled up to a megapixel
    return pipe


def z_image() -> Any:
    """Z-Image, whose network takes and returns lists."""
    network = made(
        "ZImageTransformer2DModel",
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    return pipeline("ZImagePipeline", scheduler=flow(), transformer=network)


def aura_flow() -> Any:
    """AuraFlow."""
    network = made(
        "AuraFlowTransformer2DModel",
        sample_size=32,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=256,
    )
    return pipeline("AuraFlowPipeline", scheduler=flow(), transformer=network)


def chroma() -> Any:
    """Chroma."""
    network = made(
        "ChromaTransformer2DModel",
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    return pipeline("ChromaPipeline", vae=image_vae(), scheduler=flow(), transformer=network)


def cogview4() -> Any:
    """CogView4."""
    network = made(
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
    return pipeline("CogView4Pipeline", scheduler=scheduler, transformer=network)


def dit() -> Any:
    """DiT, conditioned on classes."""
    network = made(
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
    return pipeline("DiTPipeline", transformer=network, vae=sd_vae(), scheduler=scheduler)


def hidream_inputs(batch: int) -> dict[str, Any]:
    """Embeddings of HiDream's two large encoders and the pooled ones."""
    found: dict[str, Any] = {
        "prompt_embeds_t5": drawn(batch, 8, 32),
        "prompt_embeds_llama3": drawn(2, batch, 8, 16),
        "pooled_prompt_embeds": drawn(batch, 64),
    }
    return found | {f"negative_{name}": value + 0.5 for name, value in found.items()}


def z_image_inputs(batch: int) -> dict[str, Any]:
    """A list of embeddings, one a sample."""
    return {
        "prompt_embeds": [drawn(5, 16, seed=k) for k in range(batch)],
        "negative_prompt_embeds": [drawn(5, 16, seed=50 + k) for k in range(batch)],
    }


FLUX = embeds(6, 32, negative=False, pooled_prompt_embeds=32)
TRUE_CFG = embeds(6, 32, pooled_prompt_embeds=32)

IMAGE: dict[str, Family] = {
    "flux": Family(flux, FLUX, square(8), square(16)),
    "flux-true-cfg": Family(flux, TRUE_CFG, square(8, true_cfg_scale=3.0), square(16), calls=2),
    "flux-kontext": Family(
        functools.partial(flux, "FluxKontextPipeline"),
        with_extra(FLUX, lambda batch: {"image": drawn(batch, 3, 8, 8).sigmoid()}),
        square(8, max_area=64, _auto_resize=False),
        square(16, max_area=256),
    ),
    "qwen-image": Family(
        qwen,
        embeds(7, 16, mask="prompt_embeds_mask"),
        square(32),
        square(64),
        calls=2,
    ),
    "sd3": Family(sd3, embeds(6, 32, pooled_prompt_embeds=64), square(32), square(64)),
    "pixart-sigma": Family(
        pixart,
        with_extra(
            embeds(6, 32, mask="prompt_attention_mask"), lambda batch: {"negative_prompt": None}
        ),
        square(32, use_resolution_binning=False),
        square(64),
        callback="callback",
    ),
    "sana": Family(
        sana,
        with_extra(
            embeds(6, 8, mask="prompt_attention_mask"), lambda batch: {"negative_prompt": None}
        ),
        square(128, use_resolution_binning=False),
        square(64),
    ),
    "lumina2": Family(
        lumina2,
        embeds(6, 8, mask="prompt_attention_mask"),
        square(32),
        square(64),
        calls=2,
        inner=("transformer.norm_out",),
    ),
    "hidream": Family(
        hidream, hidream_inputs, square(32), square(64), inner=("transformer.final_layer",)
    ),
    "z-image": Family(
        z_image, z_image_inputs, square(64), square(32), inner=("transformer.t_embedder",)
    ),
    "flux-img2img": Family(
        functools.partial(flux, "FluxImg2ImgPipeline"),
        with_extra(FLUX, lambda batch: {"image": drawn(batch, 3, 8, 8).sigmoid()}),
        square(8, strength=0.5),
        {"image": drawn(1, 3, 16, 16).sigmoid(), **square(16)},
        skipped=lambda steps: steps // 2,
    ),
    "dit": Family(
        dit,
        lambda batch: {"class_labels": list(range(3, 3 + batch))},
        {"output_type": "np"},
        {"guidance_scale": 2.0},
        inner=("transformer.proj_out_2",),
        callback=None,
    ),
    "aura-flow": Family(
        aura_flow, embeds(6, 32, mask="prompt_attention_mask"), square(32), square(64)
    ),
    "chroma": Family(
        chroma, embeds(6, 32, mask="prompt_attention_mask"), square(8), square(16), calls=2
    ),
    "cogview4": Family(cogview4, embeds(6, 32), square(32), square(64), calls=2),
}
