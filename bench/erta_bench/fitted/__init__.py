"""What fitted reuse is worth beside plain solvers and ERTACache, and where a fit stops holding."""

from erta_bench.fitted._parts import run_study
from erta_bench.fitted._study import Study

__all__ = ["Study", "run_study"]
