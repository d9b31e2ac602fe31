"""The schedule plot: which steps ran the network, and what reuse costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

from erta_framework.errors import InputError
from erta_framework.report._figure import ACCENT, COMPUTED, LINES, REUSED, new_figure


@dataclass(frozen=True, slots=True)
class SchedulePlot:
    """What a schedule plot shows.

    Attributes:
        title: Heading.
        computed: For each step, whether the network ran.
        errors: Predicted error of reuse at each step; NaN where unknown, infinite where reuse is
            impossible, empty where no policy predicts it.
        threshold: The error below which a step is reused, if there is one.
        distances: Measured distance from the full run after each step, by method.
        samples: For each sample and step, whether the network ran on it; empty where all agree.
    """

    title: str
    computed: Sequence[bool]
    errors: Sequence[float] = ()
    threshold: float | None = None
    distances: Mapping[str, Sequence[float]] = field(default_factory=dict)
    samples: Sequence[Sequence[bool]] = ()


def write_schedule_plot(plot: SchedulePlot, path: str | Path, *, dark: bool = False) -> Path:
    """Draw which steps were computed or reused, the predicted error, and the measured distance.

    Without predicted errors all bars have the same height.

    Args:
        plot: What to draw.
        path: Where to; the ending gives the format.
        dark: Whether it is for a dark page.

    Raises:
        InputError: `plot.errors` has another length than `plot.computed`.
        MissingExtraError: matplotlib is not installed.
    """
    if plot.errors and len(plot.errors) != len(plot.computed):
        raise InputError(f"{len(plot.errors)} errors for {len(plot.computed)} steps")
    panels = 1 + bool(plot.distances) + bool(plot.samples)
    figure = new_figure(10, 2.9 * panels + 0.4, dark=dark, wanted_by="write_schedule_plot")
    from matplotlib.ticker import MaxNLocator

    axes = figure.mpl.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    _draw_schedule(axes[0], plot, figure.ink)
    if plot.samples:
        _draw_samples(axes[1], plot.samples)
    if plot.distances:
        _draw_distances(axes[-1], plot.distances)
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].set_xlabel("step (0 is pure noise)")
    for axis in axes:
        figure.style_axis(axis)
        axis.margins(x=0.01)
    figure.set_title(plot.title)
    return figure.save(path)


def _draw_schedule(axis: Any, plot: SchedulePlot, ink: str) -> None:
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


def _draw_samples(axis: Any, samples: Sequence[Sequence[bool]]) -> None:
    from matplotlib.ticker import MaxNLocator

    for row, computed in enumerate(samples):
        colours = [COMPUTED if done else REUSED for done in computed]
        axis.bar(range(len(computed)), 0.82, bottom=row - 0.41, color=colours, width=0.82)
    axis.set_ylim(len(samples) - 0.5, -0.5)  # the first sample on top
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylabel("sample")


def _draw_distances(axis: Any, distances: Mapping[str, Sequence[float]]) -> None:
    for (name, values), colour in zip(distances.items(), cycle(LINES)):
        axis.plot(range(len(values)), values, label=name, color=colour, linewidth=2)
    axis.set_ylabel("measured relative distance\nfrom the full run")
    axis.set_ylim(bottom=0)
    axis.legend(loc="upper left", frameon=False)
