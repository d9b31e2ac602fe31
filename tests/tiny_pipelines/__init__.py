"""Tiny offline pipelines: a family for every kind of diffusers pipeline that the tests cover.

A family builds its pipeline in milliseconds, from random weights and with embeddings instead of
text encoders, and knows how to run it and to count its network calls. A module holds a line of
models, such as `_wan` or `_flux`.

All-zero parameters are drawn again, because a network whose last layer is zero predicts zero
whether it ran or not. Every list of blocks has at least two, so that a method that always runs
the first has something to skip.

The package comes with the development install and with erta-bench, not with erta-framework.

Example:
    >>> family = FAMILIES["wan-euler"]
    >>> family.run(family.build(), steps=2).shape
    torch.Size([1, 16, 3, 2, 2])
"""

from __future__ import annotations

from tiny_pipelines import (
    _audio,
    _cascade,
    _cog,
    _cosmos,
    _flux,
    _hunyuan,
    _image,
    _ltx,
    _pixart,
    _qwen,
    _stable_diffusion,
    _video,
    _wan,
)
from tiny_pipelines._cog import build_cogvideox_network
from tiny_pipelines._family import (
    Family,
    build_image_vae,
    build_model,
    build_pipeline,
    combine_inputs,
    counted,
    drawn,
    fill_zeros,
    flow,
    unipc,
)
from tiny_pipelines._wan import build_skyreels

__all__ = [
    "FAMILIES",
    "NOT_COVERED",
    "Family",
    "build_cogvideox_network",
    "build_image_vae",
    "build_model",
    "build_pipeline",
    "build_skyreels",
    "combine_inputs",
    "counted",
    "drawn",
    "fill_zeros",
    "flow",
    "unipc",
]

LINES = (
    _wan,
    _cog,
    _hunyuan,
    _ltx,
    _video,
    _cosmos,
    _audio,
    _flux,
    _qwen,
    _pixart,
    _image,
    _stable_diffusion,
    _cascade,
)
FAMILIES: dict[str, Family] = {
    name: family for line in LINES for name, family in line.FAMILIES.items()
}
"""Every family by name: video first, then sound, then images."""

NOT_COVERED: dict[str, str] = {
    "SkyReels V2 with diffusion forcing": "steps one copy of its scheduler a frame, each at a time "
    "of its own; once attached, its first request raises an error that says so",
    "Cosmos 3": "takes a tokenized prompt, no embeddings",
    "ACE-Step, Bria Fibo, DreamLite, Ideogram 4, JoyImage, LongCat, OmniGen, Qwen-Image 2.1": (
        "need a tokenizer, because embeddings cannot be given or do not replace the prompt"
    ),
    "ChronoEdit, Wan Animate, Stable Video Diffusion, ConsisID": "need an image encoder",
    "Kolors, Kandinsky 1 to 3, DeepFloyd IF": "their UNets are called as those of SDXL and SD are",
}
"""Pipelines without a family here, and why."""
