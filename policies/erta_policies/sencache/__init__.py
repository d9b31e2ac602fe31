"""SenCache (arXiv 2602.24208): reuse while a first-order bound on the output's change is small."""

from erta_policies.sencache._noised import measure_noised
from erta_policies.sencache._policy import SenCache
from erta_policies.sencache._profiler import SensitivityProfiler
from erta_policies.sencache._sensitivity import Sensitivities, scale_tolerance

__all__ = [
    "SenCache",
    "Sensitivities",
    "SensitivityProfiler",
    "measure_noised",
    "scale_tolerance",
]
