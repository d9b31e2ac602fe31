"""Procedurally rendered images of one coloured shape in some part of a dim background.

The stills of `shapes_wan.data`: the same colours, outlines and backgrounds, with a place in the
picture instead of a direction of motion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from erta_integrations.shapes_wan.data import (
    COLORS,
    FRAMES,
    SHAPES,
    SIZE,
    Scene,
    indices,
    random_scenes,
    render,
)

PLACES: dict[str, tuple[float, float]] = {  # (dy, dx) from the middle, y grows downwards
    "left": (0.0, -1.0),
    "right": (0.0, 1.0),
    "top": (-1.0, 0.0),
    "bottom": (1.0, 0.0),
}
NEAREST = 2.0
"""Pixels that a shape is at least away from the middle, toward its place."""
VOCABULARY = ("", "a", *COLORS, *SHAPES, *PLACES)
MAX_WORDS = 4


@dataclass(frozen=True, slots=True)
class Still:
    """A batch of stills.

    Attributes:
        scene: Colour, shape, size and background; nothing moves.
        place: `[B]` integer indices into `PLACES`.
    """

    scene: Scene
    place: Tensor

    def prompts(self) -> list[str]:
        """The prompt of each image."""
        colors, places = list(COLORS), list(PLACES)
        rows = zip(
            self.scene.color.tolist(), self.scene.shape.tolist(), self.place.tolist(), strict=True
        )
        return [f"a {colors[c]} {SHAPES[s]} {places[p]}" for c, s, p in rows]


def all_prompts() -> list[str]:
    """Every prompt the models know, in a fixed order (6 colours x 3 shapes x 4 places = 72).

    Example:
        >>> all_prompts()[0]
        'a red circle left'
    """
    return [
        f"a {color} {shape} {place}" for place in PLACES for shape in SHAPES for color in COLORS
    ]


def random_stills(batch: int, generator: torch.Generator) -> Still:
    """Draw stills; the shape lies wholly in the frame, off the middle toward its place."""
    scene = random_scenes(batch, generator)
    place = torch.randint(len(PLACES), (batch,), generator=generator)
    unit = torch.tensor(list(PLACES.values()))[place]
    room = (SIZE / 2 - scene.radius)[:, None]
    along = NEAREST + (room - NEAREST) * torch.rand(batch, 1, generator=generator)
    # far enough to the side and no further from the middle than along the place
    across = (2 * torch.rand(batch, 1, generator=generator) - 1) * (along - 1).clamp(max=room)
    center = SIZE / 2 + unit * along + (1 - unit.abs()) * across
    return Still(replace(scene, center=center, speed=torch.zeros(batch)), place)


def render_stills(still: Still) -> Tensor:
    """Render to anti-aliased images `[B, 3, H, W]` in [-1, 1]."""
    return render(still.scene)[:, :, FRAMES // 2].contiguous()


def tokenize(prompts: Sequence[str]) -> Tensor:
    """Word indices `[B, MAX_WORDS]`; the empty prompt is all padding (index 0).

    Raises:
        InputError: A prompt has a word outside `VOCABULARY` or too many words.
    """
    return indices(prompts, VOCABULARY, MAX_WORDS, "an image model", "a red circle left")
