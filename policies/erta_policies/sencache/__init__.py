"""SenCache (arXiv 2602.24208): reuse while a first-order bound on the output's change is small."""

from erta_policies.sencache.noised import measure_noised
from erta_policies.sencache.policy import SenCache
from erta_policies.sencache.profiler import SensitivityProfiler
from erta_policies.sencache.sensitivity import Sensitivities, tolerated

__all__ = ["SenCache", "Sensitivities", "SensitivityProfiler", "measure_noised", "tolerated"]
