"""Which caches work on which pipelines: every method on every tiny pipeline, side by side."""

from erta_bench.families._families import compare_families, update_rows

__all__ = ["compare_families", "update_rows"]
