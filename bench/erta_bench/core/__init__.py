"""What every benchmark returns: flat records, with their table, JSON file, page and Pareto plot."""

from erta_bench.core._outcome import (
    TWO_AXES,
    Measurement,
    as_finite,
    as_whole,
    average,
    describe_error,
    describe_quality,
    make_record,
)
from erta_bench.core.report import Bench, Row, Value, choose_clock

__all__ = [
    "TWO_AXES",
    "Bench",
    "Measurement",
    "Row",
    "Value",
    "as_finite",
    "as_whole",
    "average",
    "choose_clock",
    "describe_error",
    "describe_quality",
    "make_record",
]
