"""Other video pipelines: Mochi, Allegro, Kandinsky 5, Motif, EasyAnimate and Helios."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tiny_pipelines._family import (
    Family,
    build_model,
    build_pipeline,
    combine_inputs,
    flow,
    make_embeds,
    make_pairs,
    make_square,
)
from tiny_pipelines._hunyuan import build_guider
from tiny_pipelines._wan import FRAMES, WAN, build_wan_vae


def build_mochi() -> Any:
    """Mochi."""
    network = build_model(
        "MochiTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=32,
        time_embed_dim=4,
        max_sequence_length=16,
    )
    return build_pipeline("MochiPipeline", scheduler=flow(), transformer=network)


def build_allegro() -> Any:
    """Allegro."""
    network = build_model(
        "AllegroTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        cross_attention_dim=24,
        sample_width=8,
        sample_height=8,
        sample_frames=8,
        caption_channels=24,
    )
    return build_pipeline(
        "AllegroPipeline",
        scheduler=diffusers.EulerAncestralDiscreteScheduler(),
        transformer=network,
    )


def build_kandinsky5() -> Any:
    """Kandinsky 5 text-to-video, with the channels last and latents written in place."""
    network = build_model(
        "Kandinsky5Transformer3DModel",
        in_visual_dim=16,
        in_text_dim=16,
        in_text_dim2=16,
        time_dim=16,
        out_visual_dim=16,
        model_dim=16,
        ff_dim=32,
        num_text_blocks=2,
        num_visual_blocks=2,
        axes_dims=(1, 1, 2),
    )
    return build_pipeline("Kandinsky5T2VPipeline", transformer=network, scheduler=flow())


def make_kandinsky5_inputs(batch: int) -> dict[str, Any]:
    """Embeddings of both encoders, and where each prompt ends."""
    ends = 6 * torch.arange(batch + 1, dtype=torch.int32)
    given = make_pairs(prompt_embeds_qwen=(6, 16), prompt_embeds_clip=(16,))(batch)
    return {**given, "prompt_cu_seqlens": ends, "negative_prompt_cu_seqlens": ends.clone()}


def build_motif() -> Any:
    """Motif-Video."""
    network = build_model(
        "MotifVideoTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_single_layers=2,
        text_embed_dim=16,
        rope_axes_dim=(4, 4, 4),
    )
    return build_pipeline(
        "MotifVideoPipeline",
        transformer=network,
        vae=build_wan_vae(),
        scheduler=flow(),
        guider=build_guider(),
    )


def build_easyanimate() -> Any:
    """EasyAnimate."""
    network = build_model(
        "EasyAnimateTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=16,
        num_layers=2,
        sample_width=16,
        sample_height=16,
        patch_size=2,
        mmdit_layers=2,
    )
    vae = build_model(
        "AutoencoderKLMagvit",
        down_block_types=("SpatialDownBlock3D", *["SpatialTemporalDownBlock3D"] * 3),
        up_block_types=("SpatialUpBlock3D", *["SpatialTemporalUpBlock3D"] * 3),
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    return build_pipeline("EasyAnimatePipeline", transformer=network, vae=vae, scheduler=flow())


def build_helios() -> Any:
    """Helios, which makes a video of chunks; each is a request of its own."""
    network = build_model(
        "HeliosTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=32,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_dim=(4, 4, 4),
    )
    scheduler = diffusers.HeliosScheduler(
        stages=1, stage_range=[0, 1], scheduler_type="unipc", use_dynamic_shifting=False
    )
    return build_pipeline(
        "HeliosPipeline", transformer=network, vae=build_wan_vae(), scheduler=scheduler
    )


MASK = "prompt_attention_mask"

FAMILIES: dict[str, Family] = {
    "mochi": Family(
        build_mochi,
        make_embeds(6, 32, mask="prompt_attention_mask"),
        make_square(32, num_frames=7),
        make_square(48),
        layout="BCFHW",
    ),
    "allegro": Family(
        build_allegro,
        combine_inputs(
            make_embeds(6, 24, mask="prompt_attention_mask"),
            lambda batch: {"negative_prompt": None},
        ),
        make_square(32, num_frames=8),
        make_square(64, num_frames=8),
        layout="BCFHW",
    ),
    "kandinsky5": Family(
        build_kandinsky5,
        make_kandinsky5_inputs,
        make_square(32, num_frames=5),
        make_square(64),
        calls=2,
        inner=("transformer.out_layer",),
        layout="BCFHW",
    ),
    "motif-video": Family(
        build_motif,
        make_embeds(6, 16, mask=MASK),
        make_square(32, num_frames=5),
        make_square(64),
        calls=2,
        slow=True,
        layout="BCFHW",
    ),
    "easyanimate": Family(
        build_easyanimate,
        make_embeds(6, 16, mask=MASK),
        make_square(16, num_frames=5),
        make_square(32),
        layout="BCFHW",
    ),
    "helios": Family(
        build_helios,
        WAN,
        make_square(16, num_latent_frames_per_chunk=3, history_sizes=[4, 2, 1], **FRAMES),
        make_square(32),
        calls=2,
        slow=True,
        layout="BCFHW",
    ),
}
