"""Forecasts of a reused output from several earlier evaluations of the network."""

from erta_policies.forecast._coefficients import adams, hermite, newton, taylor
from erta_policies.forecast._policy import Forecaster, LinearForecast, MeanVelocity, sum_weighted

__all__ = [
    "Forecaster",
    "LinearForecast",
    "MeanVelocity",
    "adams",
    "hermite",
    "newton",
    "sum_weighted",
    "taylor",
]
