"""What every benchmark returns: flat records, with their table, JSON file, page and Pareto plot."""

from erta_bench.core._outcome import (
    Measurement,
    as_finite,
    as_whole,
    average,
    describe_error,
    make_record,
)
from erta_bench.core.report import Bench, Row, Value, choose_clock

__all__ = [
    "Bench",
    "Measurement",
    "Row",
    "Value",
    "as_finite",
    "as_whole",
    "average",
    "choose_clock",
    "describe_error",
    "make_record",
]
