"""What fitted reuse is worth beside plain solvers and ERTACache, and where a fit stops holding."""

from erta_bench.fitted._parts import run_study
from erta_bench.fitted._study import Study, open_study_model

__all__ = ["Study", "open_study_model", "run_study"]
