"""`At`: a schedule and a forecast on modules of the network: FORA, PAB, TaylorSeer, DeepCache."""

from erta_policies.at._policy import At, divide_places

__all__ = ["At", "divide_places"]
