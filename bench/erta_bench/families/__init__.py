"""Which caches work on which pipelines: every method on every tiny pipeline, side by side."""

from erta_bench.families._families import compare_families, update_rows
from erta_bench.families._places import EXACT, INEXACT, judge_places

__all__ = ["EXACT", "INEXACT", "compare_families", "judge_places", "update_rows"]
