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

from tiny_pipelines.family import Family, counted, drawn, flow, unipc
from tiny_pipelines.image import IMAGE
from tiny_pipelines.more_image import MORE_IMAGE
from tiny_pipelines.more_video import MORE_VIDEO
from tiny_pipelines.references import REFERENCES
from tiny_pipelines.unets import UNETS
from tiny_pipelines.video import VIDEO as WAN_AND_OTHERS
from tiny_pipelines.video import wan_network
from tiny_pipelines.worlds import WORLDS

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

VIDEO: dict[str, Family] = {**WAN_AND_OTHERS, **MORE_VIDEO, **WORLDS}
"""The families whose latents have frames."""
FAMILIES: dict[str, Family] = {**VIDEO, **IMAGE, **REFERENCES, **MORE_IMAGE, **UNETS}
"""Every family by name."""

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
"""What has no tiny pipeline here, and why."""
