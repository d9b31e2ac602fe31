"""Galaxies as a person sees them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from erta_bench.galaxy._models import STRETCH
from erta_framework.optional_dependencies import require_extra

FAINT = 0.02
"""Brightness at which the scale of a picture turns from linear to logarithmic."""


def as_brightness(samples: Tensor) -> Tensor:
    """Brightness of every pixel of samples, which are `log(1 + brightness) / 0.1`."""
    return (samples * STRETCH).expm1()


def write_pictures(rows: Mapping[str, Tensor], path: Path) -> Path:
    """Write samples as one picture, a line for each of several runs of the same seeds.

    The sky, which is what most pixels show, is black.

    Args:
        rows: Samples `[N, 1, H, W]` by the words beside them.
        path: A PNG file.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_extra("matplotlib", extra="report", wanted_by="pictures of galaxies")
    from matplotlib.figure import Figure

    count = max(len(samples) for samples in rows.values())
    figure = Figure(figsize=(1.1 * count + 1.4, 1.2 * len(rows)))
    axes = figure.subplots(len(rows), count, squeeze=False)
    for line, (words, samples) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(words, rotation=0, ha="right", va="center")
        for place, axis in enumerate(line):
            axis.set_xticks([])
            axis.set_yticks([])
            if place < len(samples):
                light = as_brightness(samples[place, 0])
                picture = ((light - light.median()) / FAINT).asinh()
                axis.imshow(picture.numpy(), cmap="gray", vmin=0)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    return path
