"""What caching saves where the network has its real size, with random weights.

Seconds, memory and synchronisations depend on shapes, not on weights. So networks of the sizes of
Wan2.1-1.3B and FLUX.1 are built without a download, and run inside their unmodified pipelines.
"""

from erta_bench.real_size._measure import Setup, measure_real_size
from erta_bench.real_size._networks import NETWORKS, RealNetwork, shrink

__all__ = ["NETWORKS", "RealNetwork", "Setup", "measure_real_size", "shrink"]
