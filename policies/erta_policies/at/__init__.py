"""`At`: a schedule and a forecast on modules of the network: FORA, PAB, TaylorSeer, DeepCache."""

from erta_policies.at._correction import Correction
from erta_policies.at._policy import At, divide_places, weigh_kept

__all__ = ["At", "Correction", "divide_places", "weigh_kept"]
