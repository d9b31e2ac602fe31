"""SpeCa (arXiv 2509.11628): forecasts of modules, verified at the last block."""

from erta_policies.speca._policy import SpeCa, measure_error

__all__ = ["SpeCa", "measure_error"]
