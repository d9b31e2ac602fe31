"""Other image transformers: Lumina, HiDream, AuraFlow and PRX."""

from __future__ import annotations

from typing import Any

from tiny_pipelines._family import (
    Family,
    build_model,
    build_pipeline,
    build_sd_vae,
    drawn,
    flow,
    make_embeds,
    make_square,
)


def build_lumina() -> Any:
    """Lumina-Next."""
    network = build_model(
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
    return build_pipeline(
        "LuminaPipeline", transformer=network, vae=build_sd_vae(), scheduler=flow()
    )


def build_lumina2() -> Any:
    """Lumina 2."""
    network = build_model(
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
    return build_pipeline("Lumina2Pipeline", scheduler=flow(), transformer=network)


def build_hidream() -> Any:
    """HiDream."""
    network = build_model(
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
    pipe = build_pipeline("HiDreamImagePipeline", scheduler=flow(), transformer=network)
    pipe.default_sample_size = 4  # else every request is scaled up to a megapixel
    return pipe


def make_hidream_inputs(batch: int) -> dict[str, Any]:
    """Embeddings of HiDream's two large encoders and the pooled ones."""
    found: dict[str, Any] = {
        "prompt_embeds_t5": drawn(batch, 8, 32),
        "prompt_embeds_llama3": drawn(2, batch, 8, 16),
        "pooled_prompt_embeds": drawn(batch, 64),
    }
    return found | {f"negative_{name}": value + 0.5 for name, value in found.items()}


def build_aura_flow() -> Any:
    """AuraFlow."""
    network = build_model(
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
    return build_pipeline("AuraFlowPipeline", scheduler=flow(), transformer=network)


def build_prx() -> Any:
    """PRX."""
    network = build_model(
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
    return build_pipeline("PRXPipeline", transformer=network, vae=build_sd_vae(), scheduler=flow())


MASK = "prompt_attention_mask"

FAMILIES: dict[str, Family] = {
    "lumina": Family(
        build_lumina,
        make_embeds(6, 8, mask=MASK),
        make_square(32),
        make_square(64),
        inner=("transformer.norm_out",),
    ),
    "lumina2": Family(
        build_lumina2,
        make_embeds(6, 8, mask="prompt_attention_mask"),
        make_square(32),
        make_square(64),
        calls=2,
        inner=("transformer.norm_out",),
    ),
    "hidream": Family(
        build_hidream,
        make_hidream_inputs,
        make_square(32),
        make_square(64),
        inner=("transformer.final_layer",),
    ),
    "aura-flow": Family(
        build_aura_flow,
        make_embeds(6, 32, mask="prompt_attention_mask"),
        make_square(32),
        make_square(64),
    ),
    "prx": Family(
        build_prx,
        make_embeds(6, 8, mask=MASK),
        make_square(32, use_resolution_binning=False),
        make_square(64),
        inner=("transformer.final_layer",),
        batches=False,
    ),
}
