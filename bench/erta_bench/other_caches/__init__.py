"""How the caches of diffusers and cache-dit do on an unmodified pipeline, traced as ours are."""

from erta_bench.other_caches._bridge import Bridge, bridge
from erta_bench.other_caches._layer_work import LayerWork, watch_layers
from erta_bench.other_caches._rivals import RIVALS, Rival, Target, read_rival_versions

__all__ = [
    "RIVALS",
    "Bridge",
    "LayerWork",
    "Rival",
    "Target",
    "bridge",
    "read_rival_versions",
    "watch_layers",
]
