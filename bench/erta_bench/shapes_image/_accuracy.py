"""Reads colour, shape and place back from the pixels of an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from erta_bench.shapes_image._data import PLACES
from erta_integrations.shapes_wan.accuracy import MINIMUM_AREA, UNKNOWN, read_color, read_shape
from erta_integrations.shapes_wan.data import COLORS, SHAPES


def read_prompts(image: Tensor) -> list[str]:
    """The prompt that each image looks like, with `"none"` for a word that was not found.

    Args:
        image: Pixels `[B, 3, H, W]`, in [-1, 1] up to what a sampler overshoots.

    Example:
        >>> from erta_bench.shapes_image._data import random_stills, render_stills
        >>> stills = random_stills(1, torch.Generator().manual_seed(0))
        >>> read_prompts(render_stills(stills)) == stills.prompts()
        True
    """
    color, cover = read_color(image.unsqueeze(2))
    shape, place = read_shape(cover), read_place(cover[:, 0])
    missing = (cover > 0.5).sum(dim=(1, 2, 3)) < MINIMUM_AREA
    colors, places = list(COLORS), list(PLACES)
    return [
        f"a {UNKNOWN} {UNKNOWN} {UNKNOWN}" if gone else f"a {colors[c]} {SHAPES[s]} {places[p]}"
        for c, s, p, gone in zip(
            color.tolist(), shape.tolist(), place.tolist(), missing.tolist(), strict=True
        )
    ]


def read_place(cover: Tensor) -> Tensor:
    """The place index `[B]`: to which side of the middle the covered pixels `[B, H, W]` lie."""
    weight = torch.where(cover > 0.25, cover, 0.0)
    total = weight.sum(dim=(1, 2)).clamp(min=1e-6)
    grid = torch.arange(cover.shape[-1], dtype=cover.dtype) + 0.5 - cover.shape[-1] / 2
    y = (weight.sum(dim=2) * grid).sum(dim=1) / total
    x = (weight.sum(dim=1) * grid).sum(dim=1) / total
    along = torch.stack([y, x], dim=1) @ torch.tensor(list(PLACES.values())).T
    return along.argmax(dim=1)


def measure_shares(image: Tensor, prompts: Sequence[str]) -> dict[str, float]:
    """Share of images whose colour, shape, place, and `all`, are what their prompt says, in [0, 1].

    Raises:
        ValueError: The numbers of images and prompts differ.
    """
    if len(prompts) != len(image) or not prompts:
        raise ValueError(
            f"{len(prompts)} prompts for {len(image)} images; give one an image, and at least one"
        )
    pairs = [(a.split(), b.split()) for a, b in zip(prompts, read_prompts(image), strict=True)]
    words = {"color": 1, "shape": 2, "place": 3}
    found = {name: sum(a[k] == b[k] for a, b in pairs) / len(pairs) for name, k in words.items()}
    return {**found, "all": sum(a == b for a, b in pairs) / len(pairs)}
