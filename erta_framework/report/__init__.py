"""Methods compared on one model, and the report of it: table, pictures, one HTML file."""

from erta_framework.environment import fastest_threads, machine, versions
from erta_framework.report._comparison import Comparison, Method, Row, compare
from erta_framework.report._figure import sheet
from erta_framework.report._front_plot import front_plot
from erta_framework.report._html import document, facts, inlined
from erta_framework.report._pictures import (
    ACCENT,
    COMPUTED,
    LINES,
    SchedulePlot,
    images,
    schedule_plot,
    write_gif,
)
from erta_framework.report._recorder import TrajectoryRecorder
from erta_framework.report._write import Report, write_report

__all__ = [
    "ACCENT",
    "COMPUTED",
    "LINES",
    "Comparison",
    "Method",
    "Report",
    "Row",
    "SchedulePlot",
    "TrajectoryRecorder",
    "compare",
    "document",
    "facts",
    "fastest_threads",
    "front_plot",
    "images",
    "inlined",
    "machine",
    "schedule_plot",
    "sheet",
    "versions",
    "write_gif",
    "write_report",
]
