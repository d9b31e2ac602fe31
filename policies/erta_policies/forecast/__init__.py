"""Forecasts of the network's output from several earlier evaluations."""

from erta_policies.forecast.coefficients import adams, hermite, newton, taylor
from erta_policies.forecast.policy import Forecaster, MeanVelocity

__all__ = ["Forecaster", "MeanVelocity", "adams", "hermite", "newton", "taylor"]
