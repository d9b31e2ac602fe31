"""FreqCa: low frequencies are reused, high ones are forecast."""

from erta_policies.freqca._bands import HighPass
from erta_policies.freqca._forecast import BandCorrection, BandForecast
from erta_policies.freqca._recipe import FreqCa

__all__ = ["BandCorrection", "BandForecast", "FreqCa", "HighPass"]
