"""Reads colour, shape and direction of motion back from the pixels of a video.

No network and no prompt is involved: the measures see pixels alone, and score close to 100 % on
rendered videos whose answer is known. Two facts of the rendering carry them. Backgrounds are almost
grey and colours are not, so the chroma of a pixel (its channels minus their mean) tells how much
of it is covered; and a shape is one of three outlines, so it is found by rendering all of them.
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
    """What was read from a batch of videos, one word each; `"none"` where nothing was found.

    Attributes:
        color, shape, direction: Words of `COLORS`, `SHAPES`, `DIRECTIONS`, or `"none"`.
    """

    color: tuple[str, ...]
    shape: tuple[str, ...]
    direction: tuple[str, ...]

    def prompts(self) -> list[str]:
        """The prompt that each video looks like."""
        return [
            f"a {color} {shape} moving {direction}"
            for color, shape, direction in zip(self.color, self.shape, self.direction, strict=True)
        ]


def read(video: Tensor) -> Reading:
    """Read videos.

    Args:
        video: Pixels `[B, 3, F, H, W]`, in [-1, 1] up to what a sampler overshoots.

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
        color=words(tuple(COLORS), color, missing),
        shape=words(SHAPES, shape, missing),
        direction=words(tuple(DIRECTIONS), direction, missing),
    )


def words(names: Sequence[str], index: Tensor, missing: Tensor) -> tuple[str, ...]:
    """Indices `[B]` as names, `"none"` where `missing` or negative."""
    pairs = zip(index.tolist(), missing.tolist(), strict=True)
    return tuple(UNKNOWN if gone or k < 0 else names[k] for k, gone in pairs)


def read_color(video: Tensor) -> tuple[Tensor, Tensor]:
    """The colour index `[B]` and how far each pixel is covered by it, `[B, F, H, W]` in [0, 1].

    The colour is the one nearest to the mean of the sixteenth of all pixels with the strongest
    chroma, fewer than the smallest shape covers.
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
    """The direction index `[B]` of the centroid from the first frame to the last.

    The larger of the two displacements decides; -1 where it is below `MINIMUM_MOTION`.
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
    """The shape index `[B]` whose outline fits best.

    Every frame is compared with each shape at every radius and position of `templates`; the best
    squared distances of the frames add up.
    """
    frames = cover.flatten(0, 1).flatten(1)
    distances = []
    for outlines in templates():
        size = outlines.square().sum(dim=1)
        distances.append((size - 2 * frames @ outlines.T).amin(dim=1))
    fit = torch.stack(distances, dim=1).reshape(cover.shape[0], cover.shape[1], len(SHAPES))
    return fit.sum(dim=1).argmin(dim=1)


@lru_cache(maxsize=1)
def templates() -> Tensor:
    """Coverage of each shape at radii 2.5 to 4.5 and centres half a pixel apart, `[3, N, H*W]`."""
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
    """How many of the videos show what their prompt says.

    Attributes:
        samples: Number of videos.
        color, shape, direction: Number of right ones.
        wrong: `(prompt, what was read)` of every video with a fault.
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
    wanted = [expected(prompt) for prompt in prompts]
    reading = read(video)
    found = list(zip(reading.color, reading.shape, reading.direction, strict=True))
    right = [sum(w[k] == f[k] for w, f in zip(wanted, found, strict=True)) for k in range(3)]
    wrong = [
        (prompt, seen)
        for prompt, seen, w, f in zip(prompts, reading.prompts(), wanted, found, strict=True)
        if w != f
    ]
    return Accuracy(len(prompts), right[0], right[1], right[2], tuple(wrong))


def shown(video: Tensor, prompts: Sequence[str]) -> dict[str, float]:
    """Share of videos that show each word of their prompt, and `all` of them, in [0, 1].

    Raises:
        ValueError: As with `accuracy`.
    """
    found = accuracy(video, prompts)
    words = {name: found.share(name) for name in ("color", "shape", "direction")}
    return {**words, "all": 1 - len(found.wrong) / found.samples}


def expected(prompt: str) -> tuple[str, str, str]:
    """Colour, shape and direction that a prompt asks for.

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
