"""Methods compared on one model, and the report of it: table, pictures, one HTML file."""

from erta_framework.report.comparison import Comparison, Method, Row, compare
from erta_framework.report.environment import fastest_threads, machine, versions
from erta_framework.report.recorder import TrajectoryRecorder
from erta_framework.report.write import Report, write_report

__all__ = [
    "Comparison",
    "Method",
    "Report",
    "Row",
    "TrajectoryRecorder",
    "compare",
    "fastest_threads",
    "machine",
    "versions",
    "write_report",
]
