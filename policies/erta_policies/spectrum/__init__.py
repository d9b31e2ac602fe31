"""Spectrum (arXiv 2603.01623): a Chebyshev forecast, fitted online, on growing windows."""

from erta_policies.spectrum._forecast import ChebyshevForecast
from erta_policies.spectrum._recipe import Spectrum
from erta_policies.spectrum._schedule import GrowingWindow

__all__ = ["ChebyshevForecast", "GrowingWindow", "Spectrum"]
