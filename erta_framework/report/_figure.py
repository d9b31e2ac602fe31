"""`Figure`: a matplotlib figure in the colours of a light or a dark page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erta_framework.optional_dependencies import require_extra

COMPUTED, REUSED, ACCENT = "#2f6fde", "#f2a33a", "#e0483e"
"""Colours of computed steps, of reused steps, and of thresholds."""
LINES = ("#8a5cc9", "#1f9d78", "#d1568f", "#7a8794")
"""Colours of curves, in order."""


@dataclass(frozen=True, slots=True, eq=False)
class Figure:
    """A matplotlib figure in the colours of a page. `new_figure` makes one.

    Attributes:
        mpl: The `matplotlib.figure.Figure`. No window belongs to it, and nobody else shares it.
        ink: Colour of text and lines.
        paper: Colour of the background.
    """

    mpl: Any
    ink: str
    paper: str

    def style_axis(self, axis: Any) -> None:
        """Give an axis the page's colours, a faint grid, and no frame above and on the right."""
        axis.set_facecolor(self.paper)
        axis.grid(color=self.ink, alpha=0.13, linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(colors=self.ink, labelsize=9)
        for side, spine in axis.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(self.ink)
        for label in (axis.xaxis.label, axis.yaxis.label):
            label.set_color(self.ink)
        legend = axis.get_legend()
        for text in legend.get_texts() if legend is not None else ():
            text.set_color(self.ink)

    def label_point(self, axis: Any, text: str, at: tuple[float, float], **placing: Any) -> None:
        """Write a name beside a point, on a halo that keeps it readable over marks and lines.

        Args:
            axis: The axis of the point.
            text: The name, taken literally.
            at: The point in data coordinates.
            placing: `xytext` in points, `ha`, `va` and other options of matplotlib's `annotate`.
        """
        from matplotlib.patheffects import withStroke

        halo = withStroke(linewidth=2.5, foreground=self.paper)
        options = {"textcoords": "offset points", "fontsize": 8, "parse_math": False, **placing}
        axis.annotate(text, at, color=self.ink, path_effects=[halo], zorder=5, **options)

    def set_title(self, text: str) -> None:
        """Write a heading over the whole figure, taken literally."""
        # a "$" in a name must not start a formula
        self.mpl.suptitle(text, color=self.ink, fontsize=13, x=0.01, ha="left", parse_math=False)

    def save(self, path: str | Path) -> Path:
        """Write the picture; the ending of the path gives the format."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.mpl.savefig(target, facecolor=self.paper)
        return target


def new_figure(width: float, height: float, *, dark: bool = False, wanted_by: str) -> Figure:
    """Make an empty figure whose axes are laid out without overlaps.

    Args:
        width: In inches.
        height: In inches.
        dark: Whether it is for a dark page.
        wanted_by: Who draws, for the error message.

    Raises:
        MissingExtraError: matplotlib is not installed.

    Example:
        >>> figure = new_figure(8, 4, wanted_by="a notebook")  # doctest: +SKIP
        >>> axis = figure.mpl.subplots()  # doctest: +SKIP
    """
    require_extra("matplotlib", extra="report", wanted_by=wanted_by)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as MplFigure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    ink, paper = ("#d9dde3", "#16191d") if dark else ("#24292f", "#ffffff")
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = MplFigure(figsize=(width, height), dpi=140, facecolor=paper, layout=layout)
    FigureCanvasAgg(figure)
    return Figure(figure, ink, paper)
