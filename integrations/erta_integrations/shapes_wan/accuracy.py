"""Reads colour, shape and direction of motion from the pixels of a video.

Neither a network nor the prompt is used, only pixels. On rendered videos, whose answer is known,
the measures are nearly always right. They rely on two facts of the rendering:

* Backgrounds are almost grey and colours are not. So the chroma of a pixel, its channels minus
  their mean, shows how much of it the shape covers.
* A shape has one of three outlines. So it is found by comparing with all three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from erta_integrations.shapes_wan.data import COLORS, DIRECTIONS, SHAPES, SIZE, signed_distance

UNKNOWN = "none"
MINIMUM_AREA = 4.0
"""Pixels more than half covered in the average frame; the smallest rendered shape has about 17."""
MINIMUM_MOTION = 2.0
"""Pixels from the first to the last frame; the slowest rendered shape moves 4."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The words read from a batch of videos; `"none"` where nothing was found.

    Attributes:
        color, shape, direction: Words of `COLORS`, `SHAPES`, `DIRECTIONS`, or `"none"`.
    """

    color: tuple[str, ...]
    shape: tuple[str, ...]
    direction: tuple[str, ...]

    def prompts(self) -> list[str]:
        """The prompt that fits each video."""
        return [
            f"a {color} {shape} moving {direction}"
            for color, shape, direction in zip(self.color, self.shape, self.direction, strict=True)
        ]


def read(video: Tensor) -> Reading:
    """Read colour, shape and direction of videos.

    Args:
        video: Pixels `[B, 3, F, H, W]`, in [-1, 1]; a sampler may overshoot that a little.

    Example:
        >>> from erta_integrations.shapes_wan.data import random_scenes, render
        >>> scenes = random_scenes(1, torch.Generator().manual_seed(0))
        >>> read(render(scenes)).prompts() == scenes.prompts()
        True
    """
    color, cover = read_color(video)
    missing = (cover > 0.5).sum(dim=(2, 3)).float().mean(dim=1) < MINIMUM_AREA
    shape, direction = read_shape(cover), read_direction(cover)
    return Reading(
        color=to_words(tuple(COLORS), color, missing),
        shape=to_words(SHAPES, shape, missing),
        direction=to_words(tuple(DIRECTIONS), direction, missing),
    )


def to_words(names: Sequence[str], index: Tensor, missing: Tensor) -> tuple[str, ...]:
    """Convert indices `[B]` to names; `"none"` where `missing` or negative."""
    pairs = zip(index.tolist(), missing.tolist(), strict=True)
    return tuple(UNKNOWN if gone or k < 0 else names[k] for k, gone in pairs)


def read_color(video: Tensor) -> tuple[Tensor, Tensor]:
    """Read the colour index `[B]` and the cover of each pixel, `[B, F, H, W]` in [0, 1].

    The sixteenth of the pixels with the strongest chroma, fewer than the smallest shape covers, is
    averaged; the nearest colour is taken.
    """
    pixels = video.float().clamp(-1, 1).permute(0, 2, 3, 4, 1)
    chroma = pixels - pixels.mean(dim=-1, keepdim=True)
    strength = chroma.square().sum(dim=-1).flatten(1)
    count = max(1, strength.shape[1] // 16)
    strongest = strength.topk(count, dim=1).indices
    flat = pixels.flatten(1, 3)
    mean = flat.gather(1, strongest[..., None].expand(-1, -1, 3)).mean(dim=1)
    palette = torch.tensor(list(COLORS.values()))
    color = torch.cdist(mean, palette).argmin(dim=1)
    target = palette[color] - palette[color].mean(dim=1, keepdim=True)
    along = torch.einsum("bfhwc,bc->bfhw", chroma, target) / target.square().sum(dim=1).reshape(
        -1, 1, 1, 1
    )
    return color, along.clamp(0, 1)


def read_direction(cover: Tensor) -> Tensor:
    """Read the direction index `[B]` in which the centroid moves from the first frame to the last.

    The larger of the two displacements decides; it is -1 below `MINIMUM_MOTION`.
    """
    weight = torch.where(cover > 0.25, cover, 0.0)[:, [0, -1]]
    total = weight.sum(dim=(2, 3)).clamp(min=1e-6)
    grid = torch.arange(cover.shape[-1], dtype=cover.dtype)
    y = (weight.sum(dim=3) * grid).sum(dim=2) / total
    x = (weight.sum(dim=2) * grid).sum(dim=2) / total
    moved = torch.stack([y[:, 1] - y[:, 0], x[:, 1] - x[:, 0]], dim=1)
    units = torch.tensor(list(DIRECTIONS.values()))
    along = moved @ units.T
    return torch.where(along.amax(dim=1) >= MINIMUM_MOTION, along.argmax(dim=1), -1)


def read_shape(cover: Tensor) -> Tensor:
    """Read the shape index `[B]` whose outline fits best.

    Every frame is compared with every outline of `make_outlines`; the smallest squared distances
    of the frames are added.
    """
    frames = cover.flatten(0, 1).flatten(1)
    distances = []
    for outlines in make_outlines():
        size = outlines.square().sum(dim=1)
        distances.append((size - 2 * frames @ outlines.T).amin(dim=1))
    fit = torch.stack(distances, dim=1).reshape(cover.shape[0], cover.shape[1], len(SHAPES))
    return fit.sum(dim=1).argmin(dim=1)


@lru_cache(maxsize=1)
def make_outlines() -> Tensor:
    """The cover of each shape at radii 2.5 to 4.5 and centres half a pixel apart, `[3, N, H*W]`."""
    radius = torch.arange(2.5, 4.6, 0.25)
    center = torch.arange(2.0, SIZE - 2.0 + 0.01, 0.5)
    grid = torch.arange(SIZE) + 0.5
    r, cy, cx = torch.meshgrid(radius, center, center, indexing="ij")
    r, cy, cx = (value.reshape(-1, 1, 1) for value in (r, cy, cx))
    dy, dx = grid.reshape(1, -1, 1) - cy, grid.reshape(1, 1, -1) - cx
    outlines = [
        (0.5 - signed_distance(torch.tensor(k), dy, dx, r)).clamp(0, 1).flatten(1)
        for k in range(len(SHAPES))
    ]
    return torch.stack(outlines)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How many videos show what their prompt says.

    Attributes:
        samples: Number of videos.
        color, shape, direction: Number of videos in which it is right.
        wrong: `(prompt, what was read)` of every video that is wrong in one of them.
    """

    samples: int
    color: int
    shape: int
    direction: int
    wrong: tuple[tuple[str, str], ...]

    def share(self, name: str) -> float:
        """Share of videos whose `name` (color, shape or direction) is right, in [0, 1]."""
        right: int = getattr(self, name)
        return right / self.samples


def accuracy(video: Tensor, prompts: Sequence[str]) -> Accuracy:
    """Compare videos `[B, 3, F, H, W]` with prompts of the form `a red circle moving left`.

    Raises:
        ValueError: The numbers differ, or a prompt is not of that form.
    """
    if len(prompts) != len(video) or not prompts:
        raise ValueError(
            f"{len(prompts)} prompts for {len(video)} videos; give one a video, and at least one"
        )
    wanted = [parse_prompt(prompt) for prompt in prompts]
    reading = read(video)
    found = list(zip(reading.color, reading.shape, reading.direction, strict=True))
    right = [sum(w[k] == f[k] for w, f in zip(wanted, found, strict=True)) for k in range(3)]
    wrong = [
        (prompt, seen)
        for prompt, seen, w, f in zip(prompts, reading.prompts(), wanted, found, strict=True)
        if w != f
    ]
    return Accuracy(len(prompts), right[0], right[1], right[2], tuple(wrong))


def measure_words(video: Tensor, prompts: Sequence[str]) -> dict[str, float]:
    """Measure the share of videos, in [0, 1], that show each word of their prompt, and `all`.

    Raises:
        ValueError: As with `accuracy`.
    """
    found = accuracy(video, prompts)
    words = {name: found.share(name) for name in ("color", "shape", "direction")}
    return {**words, "all": 1 - len(found.wrong) / found.samples}


def parse_prompt(prompt: str) -> tuple[str, str, str]:
    """Read colour, shape and direction that a prompt asks for.

    Raises:
        ValueError: The prompt is not of the form `a <colour> <shape> moving <direction>`.
    """
    match prompt.split():
        case ["a", color, shape, "moving", direction] if (
            color in COLORS and shape in SHAPES and direction in DIRECTIONS
        ):
            return color, shape, direction
    raise ValueError(
        f"cannot tell colour, shape and direction of {prompt!r}; "
        "write it as in 'a red circle moving left'"
    )
