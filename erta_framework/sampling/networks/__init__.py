"""Adapters that bring a published network into the form that the sampling loop calls."""

from erta_framework.sampling.networks._adapters import (
    convert_prediction,
    drop_condition,
    make_empty_condition,
    precondition_edm,
    reverse_time,
)

__all__ = [
    "convert_prediction",
    "drop_condition",
    "make_empty_condition",
    "precondition_edm",
    "reverse_time",
]
