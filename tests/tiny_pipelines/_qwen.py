"""Qwen-Image with its editing pipelines, and others behind the encoder of a language model."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d

from tiny_pipelines._family import (
    Extra,
    Family,
    Typed,
    build_model,
    build_pipeline,
    combine_inputs,
    drawn,
    flow,
    make_embeds,
    make_pairs,
    make_square,
)
from tiny_pipelines._flux import PICTURE, build_flux2_vae


def build_qwen_network() -> Any:
    """Qwen-Image's network."""
    return build_model(
        "QwenImageTransformer2DModel",
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )


def build_qwen() -> Any:
    """Qwen-Image."""
    return build_pipeline("QwenImagePipeline", scheduler=flow(), transformer=build_qwen_network())


class PooledEncoder(Typed):
    """Stands in for Qwen-Image's VAE: a latent is the mean of the 32 x 32 pixels that it covers.

    The pipelines scale each picture to a megapixel, on which the convolutions of even the smallest
    VAE take a second.
    """

    temperal_downsample = (False,) * 5
    config = SimpleNamespace(z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)

    def encode(self, pictures: Tensor) -> SimpleNamespace:
        """Latents `[B, 4, 1, H / 32, W / 32]` of pictures `[B, 3, 1, H, W]`."""
        small = avg_pool3d(pictures, (1, 32, 32))
        return SimpleNamespace(latents=torch.cat([small, small.mean(1, keepdim=True)], 1))


def build_qwen_edit(cls: str = "QwenImageEditPipeline") -> Any:
    """Qwen-Image's editing pipelines; few tokens remain of a picture."""
    network, encoder = build_qwen_network(), PooledEncoder()
    return build_pipeline(cls, scheduler=flow(), transformer=network, vae=encoder)


def build_nucleus() -> Any:
    """Nucleus-Image, whose last layers are mixtures of experts."""
    network = build_model(
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
    return build_pipeline("NucleusMoEImagePipeline", transformer=network, scheduler=flow())


def build_krea2() -> Any:
    """Krea 2, whose prompt has the hidden states of several layers."""
    network = build_model(
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
    return build_pipeline("Krea2Pipeline", transformer=network, scheduler=flow())


def make_mask(batch: int) -> Tensor:
    """A mask of six tokens that are all there."""
    return torch.ones(batch, 6, dtype=torch.bool)


def build_ernie() -> Any:
    """Ernie-Image."""
    network = build_model(
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
    return build_pipeline(
        "ErnieImagePipeline", transformer=network, vae=build_flux2_vae(1), scheduler=flow()
    )


def build_z_image() -> Any:
    """Z-Image, whose network takes and returns lists."""
    network = build_model(
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
    return build_pipeline("ZImagePipeline", scheduler=flow(), transformer=network)


def make_lists(length: int, width: int) -> Extra:
    """Lists of embeddings `[length, width]`, one a sample, with negative ones."""

    def make(batch: int) -> dict[str, Any]:
        return {
            "prompt_embeds": [drawn(length, width, seed=k) for k in range(batch)],
            "negative_prompt_embeds": [drawn(length, width, seed=50 + k) for k in range(batch)],
        }

    return make


EDIT = make_embeds(7, 16, mask="prompt_embeds_mask")

FAMILIES: dict[str, Family] = {
    "qwen-image": Family(
        build_qwen,
        make_embeds(7, 16, mask="prompt_embeds_mask"),
        make_square(32),
        make_square(64),
        calls=2,
    ),
    "qwen-image-edit": Family(
        build_qwen_edit,
        combine_inputs(EDIT, lambda batch: {"image": PICTURE}),
        make_square(64),
        make_square(128),
        calls=2,
        slow=True,
    ),
    "qwen-image-edit-plus": Family(
        functools.partial(build_qwen_edit, "QwenImageEditPlusPipeline"),
        combine_inputs(EDIT, lambda batch: {"image": [PICTURE, PICTURE]}),
        make_square(64),
        make_square(128),
        calls=2,
        batches=False,
        slow=True,
    ),
    "nucleus-image": Family(
        build_nucleus,
        make_embeds(7, 16, mask="prompt_embeds_mask"),
        make_square(32),
        make_square(64),
        calls=2,
    ),
    "krea2": Family(
        build_krea2,
        combine_inputs(
            make_pairs(prompt_embeds=(6, 2, 16)),
            lambda batch: {
                "prompt_embeds_mask": make_mask(batch),
                "negative_prompt_embeds_mask": make_mask(batch),
            },
        ),
        make_square(32),
        make_square(64),
        calls=2,
        inner=("transformer.final_layer",),
    ),
    "ernie-image": Family(
        build_ernie,
        make_lists(6, 16),
        make_square(16, use_pe=False),
        make_square(32),
        inner=("transformer.final_linear",),
    ),
    "z-image": Family(
        build_z_image,
        make_lists(5, 16),
        make_square(64),
        make_square(32),
        inner=("transformer.t_embedder",),
    ),
}
