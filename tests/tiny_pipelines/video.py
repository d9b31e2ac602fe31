"""Tiny video pipelines."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import diffusers

from tiny_pipelines.family import (
    Family,
    ada_norm_config,
    drawn,
    embeds,
    flow,
    made,
    pipeline,
    square,
    unipc,
    with_extra,
)


def wan_config() -> dict[str, Any]:
    """What Wan's network and its relatives have in common."""
    return {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 32,
        "freq_dim": 32,
        "ffn_dim": 32,
        "num_layers": 2,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 32,
    }


def wan_network(seed: int = 0, in_channels: int = 16) -> Any:
    """Wan's network; 36 input channels for image-to-video."""
    return made("WanTransformer3DModel", seed, **{**wan_config(), "in_channels": in_channels})


def wan_vae() -> Any:
    """Wan's VAE, which encodes the image or video a request starts from."""
    return made(
        "AutoencoderKLWan",
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )


def wan(scheduler: Callable[[], Any] = lambda: flow(shift=3.0)) -> Any:
    """Wan text-to-video."""
    return pipeline("WanPipeline", vae=wan_vae(), scheduler=scheduler(), transformer=wan_network())


def wan22() -> Any:
    """Wan 2.2, with one network for early and one for late steps."""
    return pipeline(
        "WanPipeline",
        vae=wan_vae(),
        scheduler=flow(shift=3.0),
        transformer=wan_network(0),
        transformer_2=wan_network(1),
        boundary_ratio=0.7,
    )


def wan_i2v() -> Any:
    """Wan image-to-video: the image joins the latents along the channels."""
    return pipeline(
        "WanImageToVideoPipeline",
        vae=wan_vae(),
        scheduler=unipc(),
        transformer=wan_network(in_channels=36),
    )


def wan_v2v() -> Any:
    """Wan video-to-video, which starts in the middle of the schedule."""
    components = {"vae": wan_vae(), "scheduler": flow(shift=3.0), "transformer": wan_network()}
    return pipeline("WanVideoToVideoPipeline", **components)


def wan_modular() -> Any:
    """Wan as a modular pipeline."""
    from diffusers.modular_pipelines.wan import WanBlocks

    blocks = WanBlocks()
    for absent in ("text_encoder", "decode"):
        blocks.sub_blocks.pop(absent)
    pipe = blocks.init_pipeline()
    pipe.update_components(transformer=wan_network(), scheduler=flow(shift=3.0), vae=wan_vae())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def cogvideox_network(**config: Any) -> Any:
    """CogVideoX' network."""
    return made(
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


def cogvideox(scheduler: str = "CogVideoXDDIMScheduler") -> Any:
    """CogVideoX text-to-video."""
    return pipeline(
        "CogVideoXPipeline",
        scheduler=getattr(diffusers, scheduler)(),
        transformer=cogvideox_network(),
    )


def cogvideox_i2v() -> Any:
    """CogVideoX image-to-video."""
    vae = made(
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
    network = cogvideox_network(in_channels=8, use_rotary_positional_embeddings=True)
    return pipeline(
        "CogVideoXImageToVideoPipeline",
        vae=vae,
        scheduler=diffusers.CogVideoXDPMScheduler(),
        transformer=network,
    )


def hunyuan() -> Any:
    """HunyuanVideo."""
    network = made(
        "HunyuanVideoTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )
    return pipeline("HunyuanVideoPipeline", scheduler=flow(shift=7.0), transformer=network)


def ltx() -> Any:
    """LTX-Video."""
    network = made(
        "LTXVideoTransformer3DModel",
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=32,
    )
    return pipeline("LTXPipeline", scheduler=flow(), transformer=network)


def latte() -> Any:
    """Latte."""
    return pipeline(
        "LattePipeline",
        scheduler=diffusers.DDIMScheduler(),
        transformer=made("LatteTransformer3DModel", video_length=2, **ada_norm_config()),
    )


def allegro() -> Any:
    """Allegro."""
    network = made(
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
    return pipeline(
        "AllegroPipeline",
        scheduler=diffusers.EulerAncestralDiscreteScheduler(),
        transformer=network,
    )


def mochi() -> Any:
    """Mochi."""
    network = made(
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
    return pipeline("MochiPipeline", scheduler=flow(), transformer=network)


WAN = embeds(8, 32)
FRAMES = {"num_frames": 9}

VIDEO: dict[str, Family] = {
    "wan-euler": Family(wan, WAN, square(16, **FRAMES), square(32, **FRAMES), calls=2),
    "wan-unipc": Family(
        functools.partial(wan, unipc), WAN, square(16, **FRAMES), square(32, **FRAMES), calls=2
    ),
    "wan22": Family(
        wan22,
        WAN,
        square(16, **FRAMES),
        square(32, **FRAMES),
        calls=2,
        inner=("transformer.proj_out", "transformer_2.proj_out"),
    ),
    "wan-i2v": Family(
        wan_i2v,
        with_extra(WAN, lambda batch: {"image": drawn(1, 3, 16, 16).sigmoid()}),
        square(16, **FRAMES),
        square(32, **FRAMES),
        calls=2,
    ),
    "cogvideox": Family(cogvideox, embeds(8, 32), square(32, **FRAMES), square(64, **FRAMES)),
    "cogvideox-i2v": Family(
        cogvideox_i2v,
        with_extra(embeds(8, 32), lambda batch: {"image": drawn(batch, 3, 32, 32).sigmoid()}),
        square(32, **FRAMES),
        square(32, num_frames=17),
    ),
    "hunyuan-video": Family(
        hunyuan,
        embeds(6, 16, negative=False, mask="prompt_attention_mask", pooled_prompt_embeds=8),
        square(16, **FRAMES),
        square(32, **FRAMES),
    ),
    "ltx": Family(
        ltx,
        embeds(8, 32, mask="prompt_attention_mask"),
        square(64, **FRAMES),
        square(96, **FRAMES),
    ),
    "wan-v2v": Family(
        wan_v2v,
        with_extra(WAN, lambda batch: {"video": drawn(batch, 9, 3, 16, 16).sigmoid()}),
        square(16, strength=0.5),
        {"video": drawn(1, 9, 3, 32, 32).sigmoid(), **square(32)},
        calls=2,
        skipped=lambda steps: steps // 2,
    ),
    "wan-modular": Family(
        wan_modular,
        WAN,
        square(16, **FRAMES),
        square(32, **FRAMES),
        calls=2,
        callback=None,
        modular=True,
    ),
    "latte": Family(
        latte,
        with_extra(embeds(6, 32), lambda batch: {"negative_prompt": None}),
        square(32, video_length=2, mask_feature=False),
        square(64),
    ),
    "allegro": Family(
        allegro,
        with_extra(
            embeds(6, 24, mask="prompt_attention_mask"), lambda batch: {"negative_prompt": None}
        ),
        square(32, num_frames=8),
        square(64, num_frames=8),
    ),
    "mochi": Family(
        mochi, embeds(6, 32, mask="prompt_attention_mask"), square(32, num_frames=7), square(48)
    ),
}
