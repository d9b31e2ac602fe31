"""FLUX, FLUX.2 and pipelines whose networks are built like FLUX': Chroma, Bria and Ovis-Image."""

from __future__ import annotations

import functools
from typing import Any

from PIL import Image

from tiny_pipelines._family import (
    Family,
    build_image_vae,
    build_model,
    build_pipeline,
    build_sd_vae,
    combine_inputs,
    drawn,
    flow,
    make_embeds,
    make_square,
)

PICTURE = Image.new("RGB", (64, 64), (200, 100, 50))


def build_flux_network(**config: Any) -> Any:
    """Flux' network."""
    return build_model(
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


def build_flux(cls: str = "FluxPipeline") -> Any:
    """Flux, or another pipeline of its network."""
    return build_pipeline(
        cls, vae=build_image_vae(), scheduler=flow(), transformer=build_flux_network()
    )


def build_flux2_vae(levels: int = 4) -> Any:
    """The VAE of Flux 2."""
    return build_model(
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


def build_flux2(cls: str = "Flux2Pipeline", **components: Any) -> Any:
    """Flux 2, or the Klein pipelines, which have no guidance embedding."""
    network = build_model(
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
    return build_pipeline(
        cls, scheduler=flow(), transformer=network, vae=build_flux2_vae(), **components
    )


def build_chroma() -> Any:
    """Chroma."""
    network = build_model(
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
    return build_pipeline(
        "ChromaPipeline", vae=build_image_vae(), scheduler=flow(), transformer=network
    )


def build_flux_like(cls: str, network: str, **config: Any) -> Any:
    """A pipeline whose network has Flux' two lists of blocks."""
    transformer = build_model(
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
    return build_pipeline(cls, transformer=transformer, vae=build_image_vae(), scheduler=flow())


def build_bria() -> Any:
    """Bria."""
    network = build_model(
        "BriaTransformer2DModel",
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=[2, 2, 4],
    )
    return build_pipeline("BriaPipeline", transformer=network, vae=build_sd_vae(), scheduler=flow())


def build_ovis() -> Any:
    """Ovis-Image."""
    return build_flux_like("OvisImagePipeline", "OvisImageTransformer2DModel", out_channels=4)


def omit_negative_prompt(batch: int) -> dict[str, Any]:
    """For pipelines whose default negative prompt is the empty string."""
    return {"negative_prompt": None}


FLUX = make_embeds(6, 32, negative=False, pooled_prompt_embeds=32)
TRUE_CFG = make_embeds(6, 32, pooled_prompt_embeds=32)
FLUX2 = make_embeds(6, 16, negative=False)
KLEIN = make_embeds(6, 16)

FAMILIES: dict[str, Family] = {
    "flux": Family(build_flux, FLUX, make_square(8), make_square(16)),
    "flux-true-cfg": Family(
        build_flux, TRUE_CFG, make_square(8, true_cfg_scale=3.0), make_square(16), calls=2
    ),
    "flux-kontext": Family(
        functools.partial(build_flux, "FluxKontextPipeline"),
        combine_inputs(FLUX, lambda batch: {"image": drawn(batch, 3, 8, 8).sigmoid()}),
        make_square(8, max_area=64, _auto_resize=False),
        make_square(16, max_area=256),
    ),
    "flux-img2img": Family(
        functools.partial(build_flux, "FluxImg2ImgPipeline"),
        combine_inputs(FLUX, lambda batch: {"image": drawn(batch, 3, 8, 8).sigmoid()}),
        make_square(8, strength=0.5),
        {"image": drawn(1, 3, 16, 16).sigmoid(), **make_square(16)},
        skipped=lambda steps: steps // 2,
    ),
    "flux2": Family(build_flux2, FLUX2, make_square(64), make_square(128)),
    "flux2-edit": Family(
        build_flux2,
        combine_inputs(FLUX2, lambda batch: {"image": PICTURE}),
        make_square(64),
        make_square(128),
    ),
    "flux2-klein": Family(
        functools.partial(build_flux2, "Flux2KleinPipeline", is_distilled=False),
        KLEIN,
        make_square(64),
        make_square(128),
        calls=2,
    ),
    "flux2-klein-kv": Family(
        functools.partial(build_flux2, "Flux2KleinKVPipeline", is_distilled=True),
        combine_inputs(FLUX2, lambda batch: {"image": PICTURE}),
        make_square(64),
        make_square(128),
        cold=(1,),
    ),
    "chroma": Family(
        build_chroma,
        make_embeds(6, 32, mask="prompt_attention_mask"),
        make_square(8),
        make_square(16),
        calls=2,
    ),
    "bria": Family(build_bria, make_embeds(6, 32), make_square(32), make_square(64)),
    "ovis-image": Family(
        build_ovis,
        combine_inputs(make_embeds(6, 32), omit_negative_prompt),
        make_square(8),
        make_square(16),
        calls=2,
    ),
}
