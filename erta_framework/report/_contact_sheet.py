"""`ContactSheet`: samples of several methods in one picture, prompts down, methods across."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from erta_framework.errors import InputError
from erta_framework.optional_dependencies import require_extra
from erta_framework.report._pictures import save_gif, to_frames

Item = TypeVar("Item")

DPI = 128
"""A power of two, so that whole pixels are exact as fractions of an inch."""
PAD, LINE, GAP = 14, 20, 2
"""Pixels between cells, of a line of text, and between frames of one cell."""
LABEL, HEADING, SMALL = (
    {"fontsize": 14 * 72 / DPI},
    {"fontsize": 15 * 72 / DPI, "fontweight": "bold"},
    {"fontsize": 12 * 72 / DPI},
)


@dataclass(frozen=True, slots=True)
class Colors:
    """Colours of a sheet: its ground, and the text of labels, headings and notes."""

    ground: str
    label: str
    heading: str
    small: str


LIGHT = Colors("#ffffff", "#333333", "#111111", "#666666")
DARK = Colors("#1e2129", "#c9cdd6", "#f2f4f8", "#9aa0ad")


@dataclass(frozen=True, slots=True, eq=False)
class ContactSheet:
    """A labelled grid of samples: one row a prompt, one column a method.

    Attributes:
        columns: Samples of each column, `[rows, C, F, H, W]` or `[rows, C, H, W]`, by label. The
            first line of a label is its heading, further lines are notes.
        rows: Label of each row.
        captions: A short text under each cell of a column, such as `"31.2 dB"`, by column label.

    Raises:
        InputError: There are no rows or columns, or a column has another number of samples.
    """

    columns: Mapping[str, Tensor]
    rows: Sequence[str]
    captions: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.columns or not self.rows:
            raise InputError("a contact sheet needs at least one row and one column")
        for label, samples in self.columns.items():
            if len(samples) != len(self.rows):
                raise InputError(
                    f"column {label!r} has {len(samples)} samples for {len(self.rows)} rows"
                )


def write_contact_sheet(
    sheet: ContactSheet,
    path: str | Path,
    *,
    frames: int = 3,
    side: int = 64,
    dark: bool = False,
) -> Path:
    """Write a still picture in which each cell shows some frames of its video side by side.

    Args:
        sheet: What is shown.
        path: Where to; the ending gives the format.
        frames: Frames of each video, evenly spread, the first and last included.
        side: Least height of a frame in pixels; frames are enlarged by whole factors.
        dark: Light text on a dark ground, for a page in dark mode.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_extra("matplotlib", extra="report", wanted_by="write_contact_sheet")
    colors = DARK if dark else LIGHT
    cells = {
        label: [_join_frames(_enlarge(sample, side), frames, colors) for sample in samples]
        for label, samples in sheet.columns.items()
    }
    figure, _ = _draw_grid(sheet, cells, colors)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)
    return target


def write_contact_animation(
    sheet: ContactSheet, path: str | Path, *, side: int = 112, fps: float = 6.0
) -> Path:
    """Write the sheet as one animated GIF in which all videos play in step.

    A video that is shorter than the longest stops at its last frame.

    Args:
        sheet: What is shown.
        path: Where to; `.gif` is appended if it does not end so.
        side: Least height of a frame in pixels; frames are enlarged by whole factors.
        fps: Frames a second.

    Raises:
        MissingExtraError: matplotlib or Pillow is not installed.
    """
    for module in ("matplotlib", "PIL"):
        require_extra(module, extra="report", wanted_by="write_contact_animation")
    videos = {
        label: [_enlarge(sample, side) for sample in samples]
        for label, samples in sheet.columns.items()
    }
    figure, images = _draw_grid(
        sheet, {label: [video[0] for video in column] for label, column in videos.items()}, LIGHT
    )
    pictures = []
    for k in range(max(len(video) for column in videos.values() for video in column)):
        for label, column in videos.items():
            for image, video in zip(images[label], column, strict=True):
                image.set_data(video[min(k, len(video) - 1)].numpy())
        figure.canvas.draw()
        pictures.append(torch.frombuffer(bytearray(figure.canvas.buffer_rgba()), dtype=torch.uint8))
    width, height = figure.canvas.get_width_height()
    return save_gif(torch.stack(pictures).reshape(-1, height, width, 4)[..., :3], path, fps)


def pick_evenly(items: Sequence[Item], count: int) -> list[Item]:
    """`count` items, evenly spread, the first and last included; all if there are fewer.

    Example:
        >>> pick_evenly("abcde", 3)
        ['a', 'c', 'e']
    """
    if count >= len(items):
        return list(items)
    if count == 1:
        return [items[len(items) // 2]]
    return [items[round(k * (len(items) - 1) / (count - 1))] for k in range(count)]


def _enlarge(sample: Tensor, side: int) -> Tensor:
    """The frames of a sample `[F, H, W, 3]`, enlarged by a whole factor to at least this height."""
    return to_frames(sample, max(1, math.ceil(side / sample.shape[-2])))


def _join_frames(frames: Tensor, count: int, colors: Colors) -> Tensor:
    """Some of the frames `[F, H, W, 3]` side by side, `[H, W', 3]`; the ground shows between."""
    chosen = frames[pick_evenly(range(len(frames)), count)]
    spaced = pad(chosen, (0, 0, 0, GAP))
    spaced[:, :, -GAP:] = torch.tensor(list(bytes.fromhex(colors.ground[1:])), dtype=torch.uint8)
    return spaced.transpose(0, 1).flatten(1, 2)[:, :-GAP]


def _draw_grid(
    sheet: ContactSheet, cells: Mapping[str, Sequence[Tensor]], colors: Colors
) -> tuple[Any, dict[str, list[Any]]]:
    """A matplotlib figure of these pictures `[H, W, 3]`, and the images of each column.

    Every cell has the size of its picture in pixels, so that nothing is resampled. Columns are as
    wide as their label needs.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [textwrap.wrap(row, 16) or [""] for row in sheet.rows]
    headings = {label: label.split("\n") for label in cells}
    left = max(_measure_width(line, LABEL) for lines in names for line in lines) + 2 * PAD
    widths = {
        label: max(
            *(cell.shape[1] for cell in column),
            *(_measure_width(line, HEADING) for line in headings[label]),
        )
        for label, column in cells.items()
    }
    cell_height = max(cell.shape[0] for column in cells.values() for cell in column)
    pitch = cell_height + PAD + (LINE if sheet.captions else 0)
    top = max(map(len, headings.values())) * LINE + 2 * PAD
    width = left + sum(widths.values()) + PAD * len(cells)
    height = top + pitch * len(sheet.rows) + PAD // 2
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=colors.ground)
    FigureCanvasAgg(figure)
    label_style = {**LABEL, "color": colors.label}
    heading, small = {**HEADING, "color": colors.heading}, {**SMALL, "color": colors.small}

    def write(text: str, x: float, y: float, va: str, style: Mapping[str, Any]) -> None:
        # parse_math: a "$" in a prompt must not start a formula
        figure.text(x / width, 1 - y / height, text, va=va, parse_math=False, **style)

    for row, lines in enumerate(names):
        middle = top + row * pitch + cell_height / 2
        write("\n".join(lines), PAD, middle, "center", {**label_style, "linespacing": 1.3})
    images: dict[str, list[Any]] = {}
    x = left
    for label, column in cells.items():
        for k, line in enumerate(headings[label]):
            write(line, x, PAD + k * LINE, "top", small if k else heading)
        images[label] = []
        for row, cell in enumerate(column):
            y = top + row * pitch + cell.shape[0]
            place = (x / width, 1 - y / height, cell.shape[1] / width, cell.shape[0] / height)
            axis = figure.add_axes(place)
            axis.set_axis_off()
            picture = cell.numpy()
            images[label].append(axis.imshow(picture, interpolation="nearest", aspect="auto"))
        for row, caption in enumerate(sheet.captions.get(label, ())):
            write(caption, x, top + row * pitch + cell_height + 3, "top", small)
        x += widths[label] + PAD
    return figure, images


def _measure_width(text: str, style: Mapping[str, Any]) -> int:
    """Pixels that a line of text takes."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    font = FontProperties(size=style["fontsize"], weight=style.get("fontweight", "normal"))
    points, _, _ = TextToPath().get_text_width_height_descent(text, font, False)
    return math.ceil(points * DPI / 72)
