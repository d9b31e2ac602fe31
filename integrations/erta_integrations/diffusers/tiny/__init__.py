"""Tiny offline pipelines, one a family: random weights, embeddings instead of text encoders.

All-zero parameters are drawn again, because a network whose last layer is zero predicts zero
whether it ran or not. Every list of blocks has at least two, so that a method that always runs
the first has something to skip.

Example:
    >>> family = FAMILIES["wan-euler"]
    >>> family.run(family.build(), steps=2).shape
    torch.Size([1, 16, 3, 2, 2])
"""

from __future__ import annotations

from erta_integrations.diffusers.tiny.family import Family, counted, drawn, flow, unipc
from erta_integrations.diffusers.tiny.image import IMAGE
from erta_integrations.diffusers.tiny.unets import UNETS
from erta_integrations.diffusers.tiny.video import VIDEO, wan_network

__all__ = [
    "FAMILIES",
    "NOT_COVERED",
    "VIDEO",
    "Family",
    "counted",
    "drawn",
    "flow",
    "unipc",
    "wan_network",
]

FAMILIES: dict[str, Family] = {**VIDEO, **IMAGE, **UNETS}
"""Every family by name."""

NOT_COVERED: dict[str, str] = {
    "LTX2": "needs a text connector, an audio VAE and a vocoder",
    "Qwen-Image edit": "encodes its prompt together with the image, so embeddings cannot be given",
    "Flux 2, Cosmos, Kandinsky 5, HunyuanVideo 1.5, SkyReels": "no tiny configuration made yet",
    "Stable Cascade": "two pipelines after each other; each is a prior or decoder of its own",
}
"""What has no tiny pipeline here, and why."""
