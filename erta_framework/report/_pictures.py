"""Pictures of samples: animated GIFs, contact sheets and schedule plots.

Needs the extra `report`: `pip install "erta-framework[report]"`. Samples are in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from erta_framework.errors import InputError
from erta_framework.optional_dependencies import require_extra
from erta_framework.report._figure import sheet

if TYPE_CHECKING:
    from PIL import Image, ImageFont

COMPUTED, REUSED, ACCENT = "#2f6fde", "#f2a33a", "#e0483e"
"""Colours of the report: computed steps, reused steps, thresholds."""
LINES = ("#8a5cc9", "#1f9d78", "#d1568f", "#7a8794")


def to_frames(sample: Tensor) -> Tensor:
    """One sample as 8-bit frames `[F, H, W, 3]`.

    Args:
        sample: A video `[C, F, H, W]` or an image `[C, H, W]` in [-1, 1], 1 or 3 channels; values
            outside are clipped.

    Raises:
        InputError: Another number of dimensions or channels, or NaN or infinite values.

    Example:
        >>> to_frames(torch.zeros(3, 5, 16, 16)).shape
        torch.Size([5, 16, 16, 3])
    """
    if sample.ndim not in (3, 4) or sample.shape[0] not in (1, 3):
        raise InputError(
            f"a picture is [C, H, W] or [C, F, H, W] with 1 or 3 channels, got "
            f"{tuple(sample.shape)}"
        )
    if not bool(sample.isfinite().all()):
        raise InputError("a sample with NaN or infinite values cannot be drawn")
    video = sample if sample.ndim == 4 else sample.unsqueeze(1)
    video = video.detach().to("cpu", torch.float32).clamp(-1, 1)
    levels = ((video + 1) * 127.5).round().to(torch.uint8)
    return levels.permute(1, 2, 3, 0).expand(-1, -1, -1, 3).contiguous()


def images(sample: Tensor, scale: int = 1) -> list[Image.Image]:
    """The frames of one sample as RGB pictures, each pixel a `scale` by `scale` block."""
    require_extra("PIL", extra="report", wanted_by="drawing pictures")
    from PIL import Image

    frames = to_frames(sample)
    blocks = frames.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
    return [Image.fromarray(frame.numpy()) for frame in blocks]


def write_gif(sample: Tensor, path: str | Path, *, scale: int = 8, fps: float = 6.0) -> Path:
    """Write one sample as an animated GIF that loops.

    Args:
        sample: A video `[C, F, H, W]` in [-1, 1]; an image gives a single frame.
        path: Where to; `.gif` is appended if it does not end so.
        scale: Side of the block that each pixel becomes.
        fps: Frames a second.

    Returns:
        The path that was written.

    Raises:
        InputError: The sample is no picture.
        MissingExtraError: Pillow is not installed.

    Example:
        >>> write_gif(samples[0], "red-circle.gif")  # doctest: +SKIP
    """
    return save_gif(images(sample, scale), path, fps)


def save_gif(frames: Sequence[Image.Image], path: str | Path, fps: float = 6.0) -> Path:
    """Write pictures of one size as a looping GIF, keeping every frame and one palette a frame."""
    require_extra("PIL", extra="report", wanted_by="writing a GIF")
    from PIL import Image

    target = Path(path)
    if target.suffix != ".gif":
        target = target.with_name(target.name + ".gif")
    target.parent.mkdir(parents=True, exist_ok=True)
    quantised = [frame.quantize(colors=255, dither=Image.Dither.NONE) for frame in frames]
    first, *rest = quantised
    first.save(
        target,
        save_all=True,
        append_images=rest,
        duration=round(1000 / fps),
        loop=0,
        optimize=False,
        disposal=1,
    )
    return target


@dataclass(frozen=True, slots=True, eq=False)
class Sheet:
    """A labelled grid of samples: one row a prompt, one column a method.

    Attributes:
        cells: For each column, its samples `[rows, C, F, H, W]`, by label.
        rows: Label of each row.
        captions: For each column, a short text under each cell, such as `"31.2 dB"`.
    """

    cells: Mapping[str, Tensor]
    rows: Sequence[str]
    captions: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.cells or not self.rows:
            raise InputError("a sheet needs at least one row and one column")
        for label, samples in self.cells.items():
            if len(samples) != len(self.rows):
                raise InputError(
                    f"column {label!r} has {len(samples)} samples for {len(self.rows)} rows"
                )


def contact_sheet(sheet: Sheet, path: str | Path, *, pictures: int = 3, side: int = 64) -> Path:
    """Write a still PNG: each cell shows some frames of its video side by side.

    Args:
        sheet: What is compared.
        path: Where to.
        pictures: Frames shown of each video, evenly spread, first and last included.
        side: Least height of a frame in pixels; frames are enlarged by whole factors.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    cells = {
        label: [beside(picked(images(s, _factor(s, side)), pictures)) for s in samples]
        for label, samples in sheet.cells.items()
    }
    draw_grid(sheet, cells).save(target)
    return target


def animated_sheet(sheet: Sheet, path: str | Path, *, side: int = 112, fps: float = 6.0) -> Path:
    """Write the sheet as one animated GIF, all videos in step.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    videos = {
        label: [images(s, _factor(s, side)) for s in samples]
        for label, samples in sheet.cells.items()
    }
    length = max(len(video) for column in videos.values() for video in column)
    frames = [
        draw_grid(
            sheet,
            {label: [v[min(k, len(v) - 1)] for v in column] for label, column in videos.items()},
        )
        for k in range(length)
    ]
    return save_gif(frames, path, fps)


def _factor(sample: Tensor, side: int) -> int:
    return max(1, math.ceil(side / sample.shape[-2]))


def picked(frames: Sequence[Image.Image], count: int) -> list[Image.Image]:
    """`count` frames, evenly spread; all of them if there are fewer."""
    if count >= len(frames):
        return list(frames)
    if count == 1:
        return [frames[len(frames) // 2]]
    return [frames[round(k * (len(frames) - 1) / (count - 1))] for k in range(count)]


def beside(frames: Sequence[Image.Image], gap: int = 2) -> Image.Image:
    """Pictures of one size in a row."""
    from PIL import Image

    width, height = frames[0].size
    strip = Image.new("RGB", (len(frames) * (width + gap) - gap, height), "white")
    for k, frame in enumerate(frames):
        strip.paste(frame, (k * (width + gap), 0))
    return strip


def draw_grid(sheet: Sheet, cells: Mapping[str, Sequence[Image.Image]]) -> Image.Image:
    """The grid with its labels on white; columns are as wide as their label needs."""
    require_extra("PIL", extra="report", wanted_by="drawing pictures")
    from PIL import Image, ImageDraw

    bold, plain, small = font(15, bold=True), font(14), font(12)
    pad, line = 14, 20
    labels = [wrapped(row, 16) for row in sheet.rows]
    headings = {label: label.split("\n") for label in cells}
    left = max(round(plain.getlength(text)) for lines in labels for text in lines) + 2 * pad
    widths = {
        label: max(column[0].width, *(round(bold.getlength(t)) for t in headings[label]))
        for label, column in cells.items()
    }
    top = max(map(len, headings.values())) * line + 2 * pad
    height = max(cell.height for column in cells.values() for cell in column)
    pitch = height + pad + (line if sheet.captions else 0)
    size = (
        left + sum(widths.values()) + pad * len(cells),
        top + pitch * len(sheet.rows) + pad // 2,
    )
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for row, lines in enumerate(labels):
        y = top + row * pitch + height // 2 - len(lines) * line // 2
        for k, text in enumerate(lines):
            draw.text((pad, y + k * line), text, font=plain, fill="#333333")
    x = left
    for label, column in cells.items():
        for k, text in enumerate(headings[label]):
            style, colour = (bold, "#111111") if k == 0 else (small, "#666666")
            draw.text((x, pad + k * line), text, font=style, fill=colour)
        captions = sheet.captions.get(label, ())
        for row, cell in enumerate(column):
            canvas.paste(cell, (x, top + row * pitch))
            if row < len(captions):
                where = (x, top + row * pitch + height + 3)
                draw.text(where, captions[row], font=small, fill="#666666")
        x += widths[label] + pad
    return canvas


def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along, so that pictures look alike everywhere."""
    require_extra("matplotlib", extra="report", wanted_by="labelling pictures")
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def wrapped(text: str, width: int) -> list[str]:
    """A label as lines of at most `width` characters where words allow it."""
    import textwrap

    return textwrap.wrap(text, width) or [""]


@dataclass(frozen=True, slots=True)
class SchedulePlot:
    """What a schedule plot shows.

    Attributes:
        title: Heading.
        computed: For each step, whether the network ran.
        errors: Predicted error of reuse at each step; NaN where unknown, infinite where reuse is
            impossible, empty if nobody predicts.
        threshold: The error below which a step is reused, if there is one.
        distances: Measured distance from the full run after each step, by method.
        samples: For each sample and step, whether the network ran on it, where samples differed.
    """

    title: str
    computed: Sequence[bool]
    errors: Sequence[float] = ()
    threshold: float | None = None
    distances: Mapping[str, Sequence[float]] = field(default_factory=dict)
    samples: Sequence[Sequence[bool]] = ()


def schedule_plot(plot: SchedulePlot, path: str | Path, *, dark: bool = False) -> Path:
    """Draw which steps are computed or reused, the predicted error, and the measured distance.

    Without predicted errors all bars are of one height.

    Raises:
        InputError: Errors and steps are not equally many.
        MissingExtraError: matplotlib is not installed.
    """
    if plot.errors and len(plot.errors) != len(plot.computed):
        raise InputError(f"{len(plot.errors)} errors for {len(plot.computed)} steps")
    panels = 1 + bool(plot.distances) + bool(plot.samples)
    page = sheet(10, 2.9 * panels + 0.4, dark=dark, wanted_by="schedule_plot")
    from matplotlib.ticker import MaxNLocator

    axes = page.figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    _schedule_panel(axes[0], plot, page.ink)
    if plot.samples:
        _sample_panel(axes[1], plot.samples)
    if plot.distances:
        _distance_panel(axes[-1], plot.distances)
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].set_xlabel("step (0 is pure noise)")
    for axis in axes:
        page.style(axis)
        axis.margins(x=0.01)
    page.title(plot.title)
    return page.write(path)


def _schedule_panel(axis: Any, plot: SchedulePlot, ink: str) -> None:
    from matplotlib.patches import Patch

    steps = range(len(plot.computed))
    known = [error for error in plot.errors if math.isfinite(error)]
    top = max(known, default=1.0) or 1.0
    # an unknown error has no bar, an infinite one ends at the top
    heights = (
        [min(e, top) if e >= 0 else 0.0 for e in plot.errors] if known else [top for _ in steps]
    )
    colours = [COMPUTED if done else REUSED for done in plot.computed]
    axis.bar(steps, heights, color=colours, width=0.82)
    # a strip under the bars keeps steps visible whose error is unknown or tiny
    low = -0.07 * top
    axis.bar(steps, [0.8 * low for _ in steps], color=colours, width=0.82)
    axis.set_ylim(low, 1.12 * top)
    handles = [
        Patch(color=COMPUTED, label=f"computed ({sum(plot.computed)})"),
        Patch(color=REUSED, label=f"reused ({len(plot.computed) - sum(plot.computed)})"),
    ]
    if known and plot.threshold is not None:
        line = axis.axhline(plot.threshold, color=ACCENT, linewidth=1.3, linestyle="--")
        line.set_label(f"threshold {plot.threshold:.3g}")
        handles.append(line)
    if known:
        axis.set_ylabel("predicted relative error\nof reusing here")
    else:
        axis.set_yticks([])
    above = {"loc": "lower right", "bbox_to_anchor": (1.0, 0.98), "frameon": False}
    axis.legend(handles=handles, ncols=3, labelcolor=ink, **above)


def _sample_panel(axis: Any, samples: Sequence[Sequence[bool]]) -> None:
    from matplotlib.ticker import MaxNLocator

    for row, computed in enumerate(samples):
        colours = [COMPUTED if done else REUSED for done in computed]
        axis.bar(range(len(computed)), 0.82, bottom=row - 0.41, color=colours, width=0.82)
    axis.set_ylim(len(samples) - 0.5, -0.5)  # the first sample on top
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylabel("sample")


def _distance_panel(axis: Any, distances: Mapping[str, Sequence[float]]) -> None:
    for (name, values), colour in zip(distances.items(), LINES, strict=False):
        axis.plot(range(len(values)), values, label=name, color=colour, linewidth=2)
    axis.set_ylabel("measured relative distance\nfrom the full run")
    axis.set_ylim(bottom=0)
    axis.legend(loc="upper left", frameon=False)
