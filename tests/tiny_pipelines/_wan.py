"""Wan, and SkyReels V2 and AnyFlow, whose networks are relatives of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import diffusers

from tiny_pipelines._family import (
    Family,
    build_model,
    build_pipeline,
    combine_inputs,
    drawn,
    flow,
    make_embeds,
    make_square,
    unipc,
)


def configure_wan() -> dict[str, Any]:
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


def build_wan_network(seed: int = 0, in_channels: int = 16) -> Any:
    """Wan's network; 36 input channels for image-to-video."""
    return build_model(
        "WanTransformer3DModel", seed, **{**configure_wan(), "in_channels": in_channels}
    )


def build_wan_vae() -> Any:
    """Wan's VAE, which encodes the image or video a request starts from."""
    return build_model(
        "AutoencoderKLWan",
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )


def build_wan(scheduler: Callable[[], Any] = lambda: flow(shift=3.0)) -> Any:
    """Wan text-to-video."""
    return build_pipeline(
        "WanPipeline", vae=build_wan_vae(), scheduler=scheduler(), transformer=build_wan_network()
    )


def build_wan22() -> Any:
    """Wan 2.2, with one network for early and one for late steps."""
    return build_pipeline(
        "WanPipeline",
        vae=build_wan_vae(),
        scheduler=flow(shift=3.0),
        transformer=build_wan_network(0),
        transformer_2=build_wan_network(1),
        boundary_ratio=0.7,
    )


def build_wan_i2v() -> Any:
    """Wan image-to-video: the image joins the latents along the channels."""
    return build_pipeline(
        "WanImageToVideoPipeline",
        vae=build_wan_vae(),
        scheduler=unipc(),
        transformer=build_wan_network(in_channels=36),
    )


def build_wan_v2v() -> Any:
    """Wan video-to-video, which starts in the middle of the schedule."""
    components = {
        "vae": build_wan_vae(),
        "scheduler": flow(shift=3.0),
        "transformer": build_wan_network(),
    }
    return build_pipeline("WanVideoToVideoPipeline", **components)


def build_wan_modular() -> Any:
    """Wan as a modular pipeline."""
    from diffusers.modular_pipelines.wan import WanBlocks

    blocks = WanBlocks()
    for absent in ("text_encoder", "decode"):
        blocks.sub_blocks.pop(absent)
    pipe = blocks.init_pipeline()
    pipe.update_components(
        transformer=build_wan_network(), scheduler=flow(shift=3.0), vae=build_wan_vae()
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def build_wan_like(cls: str, network: str, scheduler: Any, **config: Any) -> Any:
    """A pipeline whose network is a relative of Wan's."""
    transformer = build_model(network, **{**configure_wan(), **config})
    return build_pipeline(cls, transformer=transformer, vae=build_wan_vae(), scheduler=scheduler)


def build_skyreels(cls: str = "SkyReelsV2Pipeline") -> Any:
    """SkyReels V2."""
    return build_wan_like(cls, "SkyReelsV2Transformer3DModel", unipc())


def build_vace() -> Any:
    """Wan VACE, with a second list of blocks for its control."""
    return build_wan_like(
        "WanVACEPipeline",
        "WanVACETransformer3DModel",
        unipc(),
        num_layers=3,
        vace_layers=[0, 2],
        vace_in_channels=96,
    )


def build_anyflow() -> Any:
    """AnyFlow, whose network also takes the timestep at which the step ends."""
    network = build_model(
        "AnyFlowTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=32,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    scheduler = diffusers.FlowMapEulerDiscreteScheduler()
    return build_pipeline(
        "AnyFlowPipeline", transformer=network, vae=build_wan_vae(), scheduler=scheduler
    )


WAN = make_embeds(8, 32)
FRAMES = {"num_frames": 9}

FAMILIES: dict[str, Family] = {
    "wan-euler": Family(
        build_wan,
        WAN,
        make_square(16, **FRAMES),
        make_square(32, **FRAMES),
        calls=2,
        layout="BCFHW",
    ),
    "wan-unipc": Family(
        functools.partial(build_wan, unipc),
        WAN,
        make_square(16, **FRAMES),
        make_square(32, **FRAMES),
        calls=2,
        layout="BCFHW",
    ),
    "wan22": Family(
        build_wan22,
        WAN,
        make_square(16, **FRAMES),
        make_square(32, **FRAMES),
        calls=2,
        inner=("transformer.proj_out", "transformer_2.proj_out"),
        layout="BCFHW",
    ),
    "wan-i2v": Family(
        build_wan_i2v,
        combine_inputs(WAN, lambda batch: {"image": drawn(1, 3, 16, 16).sigmoid()}),
        make_square(16, **FRAMES),
        make_square(32, **FRAMES),
        calls=2,
        layout="BCFHW",
    ),
    "wan-v2v": Family(
        build_wan_v2v,
        combine_inputs(WAN, lambda batch: {"video": drawn(batch, 9, 3, 16, 16).sigmoid()}),
        make_square(16, strength=0.5),
        {"video": drawn(1, 9, 3, 32, 32).sigmoid(), **make_square(32)},
        calls=2,
        skipped=lambda steps: steps // 2,
        layout="BCFHW",
    ),
    "wan-modular": Family(
        build_wan_modular,
        WAN,
        make_square(16, **FRAMES),
        make_square(32, **FRAMES),
        calls=2,
        callback=None,
        modular=True,
        layout="BCFHW",
    ),
    "wan-vace": Family(
        build_vace,
        WAN,
        make_square(16, **FRAMES),
        make_square(32),
        calls=2,
        batches=False,
        slow=True,
        layout="BCFHW",
    ),
    "skyreels-v2": Family(
        build_skyreels, WAN, make_square(16, **FRAMES), make_square(32), calls=2, layout="BCFHW"
    ),
    "anyflow": Family(
        build_anyflow,
        make_embeds(8, 32, negative=False),
        make_square(16, **FRAMES),
        make_square(32),
        layout="BCFHW",
    ),
}
