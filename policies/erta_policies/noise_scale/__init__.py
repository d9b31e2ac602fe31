"""`NoiseScale`: the noise in the guided prediction is multiplied by a factor for each step."""

from erta_policies.noise_scale._curve import HIGH, LOW, TURN, NoiseCurve
from erta_policies.noise_scale._policy import NoiseScale, scale_noise

__all__ = ["HIGH", "LOW", "TURN", "NoiseCurve", "NoiseScale", "scale_noise"]
