"""More tiny video pipelines."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tiny_pipelines.family import (
    Family,
    embeds,
    flow,
    made,
    paired,
    pipeline,
    sd_vae,
    square,
    unipc,
    with_extra,
)
from tiny_pipelines.video import FRAMES, WAN, wan_config, wan_vae


def kandinsky5() -> Any:
    """Kandinsky 5 text-to-video, with the channels last and latents written in place."""
    network = made(
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
    return pipeline("Kandinsky5T2VPipeline", transformer=network, scheduler=flow())


def kandinsky5_inputs(batch: int) -> dict[str, Any]:
    """Embeddings of both encoders, and where each prompt ends."""
    ends = 6 * torch.arange(batch + 1, dtype=torch.int32)
    given = paired(prompt_embeds_qwen=(6, 16), prompt_embeds_clip=(16,))(batch)
    return {**given, "prompt_cu_seqlens": ends, "negative_prompt_cu_seqlens": ends.clone()}


def guider() -> Any:
    """A guider, which names the branches."""
    from diffusers.guiders import ClassifierFreeGuidance

    return ClassifierFreeGuidance(guidance_scale=3.0)


def hunyuan_video15() -> Any:
    """HunyuanVideo 1.5."""
    network = made(
        "HunyuanVideo15Transformer3DModel",
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=16,
        text_embed_2_dim=8,
        image_embed_dim=12,
        rope_axes_dim=(2, 2, 4),
        target_size=16,
        task_type="t2v",
    )
    vae = made(
        "AutoencoderKLHunyuanVideo15",
        latent_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    scheduler = flow(shift=7.0)
    return pipeline(
        "HunyuanVideo15Pipeline", transformer=network, vae=vae, scheduler=scheduler, guider=guider()
    )


def motif() -> Any:
    """Motif-Video."""
    network = made(
        "MotifVideoTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_single_layers=2,
        text_embed_dim=16,
        rope_axes_dim=(4, 4, 4),
    )
    return pipeline(
        "MotifVideoPipeline",
        transformer=network,
        vae=wan_vae(),
        scheduler=flow(),
        guider=guider(),
    )


def wan_like(cls: str, network: str, scheduler: Any, **config: Any) -> Any:
    """A pipeline whose network is a relative of Wan's."""
    transformer = made(network, **{**wan_config(), **config})
    return pipeline(cls, transformer=transformer, vae=wan_vae(), scheduler=scheduler)


def skyreels(cls: str = "SkyReelsV2Pipeline") -> Any:
    """SkyReels V2."""
    return wan_like(cls, "SkyReelsV2Transformer3DModel", unipc())


def vace() -> Any:
    """Wan VACE, with a second list of blocks for its control."""
    return wan_like(
        "WanVACEPipeline",
        "WanVACETransformer3DModel",
        unipc(),
        num_layers=3,
        vace_layers=[0, 2],
        vace_in_channels=96,
    )


def anyflow() -> Any:
    """AnyFlow, whose network is also told where the step ends."""
    network = made(
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
    return pipeline("AnyFlowPipeline", transformer=network, vae=wan_vae(), scheduler=scheduler)


def helios() -> Any:
    """Helios, which makes a video of chunks; each is a request of its own."""
    network = made(
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
    return pipeline("HeliosPipeline", transformer=network, vae=wan_vae(), scheduler=scheduler)


def sana_video() -> Any:
    """Sana-Video."""
    network = made(
        "SanaVideoTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=8,
        sample_size=8,
        rope_max_seq_len=32,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True
    )
    return pipeline("SanaVideoPipeline", transformer=network, vae=wan_vae(), scheduler=scheduler)


def easyanimate() -> Any:
    """EasyAnimate."""
    network = made(
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
    vae = made(
        "AutoencoderKLMagvit",
        down_block_types=("SpatialDownBlock3D", *["SpatialTemporalDownBlock3D"] * 3),
        up_block_types=("SpatialUpBlock3D", *["SpatialTemporalUpBlock3D"] * 3),
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    return pipeline("EasyAnimatePipeline", transformer=network, vae=vae, scheduler=flow())


def animatediff() -> Any:
    """AnimateDiff on Stable Diffusion, with the frames in the batch."""
    unet = made(
        "UNet2DConditionModel",
        block_out_channels=(8, 8),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        norm_num_groups=2,
    )
    adapter = made(
        "MotionAdapter",
        block_out_channels=(8, 8),
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=4,
    )
    return pipeline(
        "AnimateDiffPipeline",
        unet=unet,
        motion_adapter=adapter,
        vae=sd_vae(),
        scheduler=diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False),
    )


MASK = "prompt_attention_mask"

MORE_VIDEO: dict[str, Family] = {
    "kandinsky5": Family(
        kandinsky5,
        kandinsky5_inputs,
        square(32, num_frames=5),
        square(64),
        calls=2,
        inner=("transformer.out_layer",),
    ),
    "hunyuan-video-1.5": Family(
        hunyuan_video15,
        paired(
            {"prompt_embeds_mask": 6, "prompt_embeds_mask_2": 4},
            prompt_embeds=(6, 16),
            prompt_embeds_2=(4, 8),
        ),
        square(16, num_frames=5),
        square(32),
        calls=2,
        callback=None,
        slow=True,
    ),
    "motif-video": Family(
        motif,
        embeds(6, 16, mask=MASK),
        square(32, num_frames=5),
        square(64),
        calls=2,
        slow=True,
    ),
    "skyreels-v2": Family(skyreels, WAN, square(16, **FRAMES), square(32), calls=2),
    "wan-vace": Family(
        vace,
        WAN,
        square(16, **FRAMES),
        square(32),
        calls=2,
        batches=False,
        slow=True,
    ),
    "anyflow": Family(anyflow, embeds(8, 32, negative=False), square(16, **FRAMES), square(32)),
    "helios": Family(
        helios,
        WAN,
        square(16, num_latent_frames_per_chunk=3, history_sizes=[4, 2, 1], **FRAMES),
        square(32),
        calls=2,
        slow=True,
    ),
    "sana-video": Family(
        sana_video,
        with_extra(embeds(6, 8, mask=MASK), lambda batch: {"negative_prompt": None}),
        square(32, frames=5, use_resolution_binning=False),
        square(64),
    ),
    "easyanimate": Family(
        easyanimate, embeds(6, 16, mask=MASK), square(16, num_frames=5), square(32)
    ),
    "animatediff": Family(
        animatediff,
        embeds(6, 16),
        square(16, num_frames=2),
        square(32),
        inner=("unet.conv_out",),
        slow=True,
    ),
}
