"""Tiny image pipelines that edit: tokens of reference images go in behind the latents."""

from __future__ import annotations

import functools
from typing import Any

from PIL import Image

from tiny_pipelines.family import Family, embeds, flow, made, pipeline, square, with_extra
from tiny_pipelines.image import qwen_network

PICTURE = Image.new("RGB", (64, 64), (200, 100, 50))


def qwen_edit(cls: str = "QwenImageEditPipeline") -> Any:
    """Qwen-Image's editing pipelines, which scale each picture to a megapixel.

    The VAE has six levels, so that few tokens remain of it.
    """
    vae = made(
        "AutoencoderKLQwenImage",
        base_dim=2,
        z_dim=4,
        dim_mult=[1, 1, 1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False] * 5,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return pipeline(cls, scheduler=flow(), transformer=qwen_network(), vae=vae)


def flux2_vae(levels: int = 4) -> Any:
    """The VAE of Flux 2."""
    return made(
        "AutoencoderKLFlux2",
        block_out_channels=(4,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=1,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def flux2(cls: str = "Flux2Pipeline", **components: Any) -> Any:
    """Flux 2, or the Klein pipelines, which have no guidance embedding."""
    network = made(
        "Flux2Transformer2DModel",
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=cls == "Flux2Pipeline",
    )
    return pipeline(cls, scheduler=flow(), transformer=network, vae=flux2_vae(), **components)


EDIT = embeds(7, 16, mask="prompt_embeds_mask")
FLUX2 = embeds(6, 16, negative=False)
KLEIN = embeds(6, 16)

REFERENCES: dict[str, Family] = {
    "qwen-image-edit": Family(
        qwen_edit,
        with_extra(EDIT, lambda batch: {"image": PICTURE}),
        square(64),
        square(128),
        calls=2,
        slow=True,
    ),
    "qwen-image-edit-plus": Family(
        functools.partial(qwen_edit, "QwenImageEditPlusPipeline"),
        with_extra(EDIT, lambda batch: {"image": [PICTURE, PICTURE]}),
        square(64),
        square(128),
        calls=2,
        batches=False,
        slow=True,
    ),
    "flux2": Family(flux2, FLUX2, square(64), square(128)),
    "flux2-edit": Family(
        flux2, with_extra(FLUX2, lambda batch: {"image": PICTURE}), square(64), square(128)
    ),
    "flux2-klein": Family(
        functools.partial(flux2, "Flux2KleinPipeline", is_distilled=False),
        KLEIN,
        square(64),
        square(128),
        calls=2,
    ),
    "flux2-klein-kv": Family(
        functools.partial(flux2, "Flux2KleinKVPipeline", is_distilled=True),
        with_extra(FLUX2, lambda batch: {"image": PICTURE}),
        square(64),
        square(128),
        cold=(1,),
    ),
}
