"""Rendered videos of one coloured shape that moves over a dim background.

The pixels of a video follow from its `Scene` alone. So training needs no data set, and the accuracy
check knows the right answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from erta_framework.errors import InputError

FRAMES, SIZE = 5, 16
COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.95, -0.75, -0.75),
    "green": (-0.8, 0.7, -0.75),
    "blue": (-0.75, -0.55, 1.0),
    "yellow": (0.95, 0.85, -0.8),
    "purple": (0.65, -0.85, 0.9),
    "cyan": (-0.8, 0.8, 0.95),
}
SHAPES = ("circle", "square", "triangle")
DIRECTIONS: dict[str, tuple[float, float]] = {  # (dy, dx), y grows downwards
    "left": (0.0, -1.0),
    "right": (0.0, 1.0),
    "up": (-1.0, 0.0),
    "down": (1.0, 0.0),
}


def all_prompts() -> list[str]:
    """Every prompt the model knows, in a fixed order (6 colours x 3 shapes x 4 directions = 72).

    Example:
        >>> all_prompts()[0]
        'a red circle moving left'
    """
    return [
        f"a {color} {shape} moving {direction}"
        for direction in DIRECTIONS
        for shape in SHAPES
        for color in COLORS
    ]


@dataclass(frozen=True, slots=True)
class Scene:
    """A batch of scenes: what each video shows.

    Attributes:
        color, shape, direction: `[B]` integer indices into `COLORS`, `SHAPES`, `DIRECTIONS`.
        radius: `[B]` half extent in pixels.
        center: `[B, 2]` position (y, x) in the middle frame, in pixels.
        speed: `[B]` pixels per frame.
        background: `[B, 2, 3]` colour at the top and at the bottom, in [-1, 1].
    """

    color: Tensor
    shape: Tensor
    direction: Tensor
    radius: Tensor
    center: Tensor
    speed: Tensor
    background: Tensor

    def prompts(self) -> list[str]:
        """The prompt of each video."""
        colors, directions = list(COLORS), list(DIRECTIONS)
        return [
            f"a {colors[c]} {SHAPES[s]} moving {directions[d]}"
            for c, s, d in zip(
                self.color.tolist(), self.shape.tolist(), self.direction.tolist(), strict=True
            )
        ]


def random_scenes(batch: int, generator: torch.Generator) -> Scene:
    """Draw scenes whose shape stays inside the frame in all `FRAMES` frames."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    direction = torch.randint(len(DIRECTIONS), (batch,), generator=generator)
    unit = torch.tensor(list(DIRECTIONS.values()))[direction]
    radius, speed = uniform(3.0, 4.0, batch), uniform(1.0, 1.75, batch)
    reach = radius[:, None] + unit.abs() * speed[:, None] * (FRAMES - 1) / 2
    room = (SIZE / 2 - reach).clamp(min=0.0)
    center = SIZE / 2 + (2 * torch.rand(batch, 2, generator=generator) - 1) * room
    tone = uniform(-1.0, -0.35, batch, 2, 1)
    return Scene(
        color=torch.randint(len(COLORS), (batch,), generator=generator),
        shape=torch.randint(len(SHAPES), (batch,), generator=generator),
        direction=direction,
        radius=radius,
        center=center,
        speed=speed,
        background=(tone + uniform(-0.08, 0.08, batch, 2, 3)).clamp(-1, 1),
    )


def signed_distance(shape: Tensor, dy: Tensor, dx: Tensor, radius: Tensor) -> Tensor:
    """Distance in pixels to the outline, negative inside; all arguments broadcast together."""
    circle = (dy**2 + dx**2).sqrt() - radius
    square = torch.maximum(dy.abs(), dx.abs()) - 0.88 * radius
    # upright triangle: flat bottom edge and two slanted edges
    slant = (dx.abs() * 2.0 - dy - radius) / 5.0**0.5
    triangle = torch.maximum(slant, dy - 0.95 * radius)
    return torch.where(shape == 0, circle, torch.where(shape == 1, square, triangle))


def render(scene: Scene) -> Tensor:
    """Render scenes to anti-aliased videos `[B, 3, F, H, W]` in [-1, 1]."""
    unit = torch.tensor(list(DIRECTIONS.values()))[scene.direction]
    when = torch.arange(FRAMES) - (FRAMES - 1) / 2
    center = scene.center[:, None] + when[None, :, None] * (unit * scene.speed[:, None])[:, None]
    grid = torch.arange(SIZE) + 0.5
    dy = grid[None, None, :, None] - center[:, :, 0, None, None]
    dx = grid[None, None, None, :] - center[:, :, 1, None, None]
    distance = signed_distance(
        scene.shape[:, None, None, None], dy, dx, scene.radius[:, None, None, None]
    )
    alpha = (0.5 - distance).clamp(0, 1)[:, None]
    color = torch.tensor(list(COLORS.values()))[scene.color][:, :, None, None, None]
    ramp = torch.linspace(0, 1, SIZE)[None, None, None, :, None]
    top, bottom = (scene.background[:, k][:, :, None, None, None] for k in (0, 1))
    background = top + (bottom - top) * ramp
    return alpha * color + (1 - alpha) * background


VOCABULARY = ("", "a", "moving", *COLORS, *SHAPES, *DIRECTIONS)
MAX_WORDS = 6


def tokenize(prompts: Sequence[str]) -> Tensor:
    """Word indices `[B, MAX_WORDS]`; the empty prompt is all padding (index 0).

    Raises:
        InputError: A prompt has a word outside `VOCABULARY` or too many words.
    """
    return indices(prompts, VOCABULARY, MAX_WORDS, "shapes-wan", "a red circle moving left")


def indices(
    prompts: Sequence[str], vocabulary: Sequence[str], longest: int, model: str, example: str
) -> Tensor:
    """Places of words in a vocabulary, `[B, longest]`, padded with 0.

    Raises:
        InputError: A prompt has a word outside the vocabulary or too many; names the model.
    """
    rows = []
    for prompt in prompts:
        words = prompt.lower().split()
        unknown = [word for word in words if word not in vocabulary]
        if unknown or len(words) > longest:
            raise InputError(
                f"{model} cannot read the prompt {prompt!r}: "
                + (f"unknown words {unknown}" if unknown else f"more than {longest} words")
                + f"; it knows {', '.join(vocabulary[1:])}, as in {example!r}"
            )
        found = [vocabulary.index(word) for word in words]
        rows.append(found + [0] * (longest - len(found)))
    return torch.tensor(rows)
