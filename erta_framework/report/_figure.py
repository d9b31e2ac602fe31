"""Sheets that the plots are drawn on, for light and for dark pages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erta_framework.optional_dependencies import require_extra


@dataclass(frozen=True, slots=True)
class Sheet:
    """An empty matplotlib figure in the colours of a page.

    Attributes:
        figure: The figure; nobody else shares it, and no window belongs to it.
        ink: Colour of text and lines.
        paper: Colour of the background.
    """

    figure: Any
    ink: str
    paper: str

    def style(self, axis: Any) -> None:
        """A quiet grid, and no frame above and on the right."""
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

    def title(self, text: str) -> None:
        """A heading over the whole figure."""
        self.figure.suptitle(text, color=self.ink, fontsize=13, x=0.01, ha="left")

    def write(self, path: str | Path) -> Path:
        """Write the picture; its ending gives the format."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.figure.savefig(target, facecolor=self.paper)
        return target


def sheet(width: float, height: float, *, dark: bool = False, wanted_by: str) -> Sheet:
    """A new sheet of this size in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_extra("matplotlib", extra="report", wanted_by=wanted_by)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    ink, paper = ("#d9dde3", "#16191d") if dark else ("#24292f", "#ffffff")
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(width, height), dpi=140, facecolor=paper, layout=layout)
    FigureCanvasAgg(figure)
    return Sheet(figure, ink, paper)
