"""Networks that nobody here trained: the score networks of the package galaxygrad.

They draw galaxies of sky surveys. The weights stay in that package, which has no licence in its
metadata: nothing of it is copied or shipped. Only its weight files are read.
"""

from functools import partial

from erta_bench.galaxy._models import Galaxy, GalaxyFlow, GalaxyNoise, load_flow, load_noise
from erta_bench.galaxy._network import ScoreConfig, ScoreNet, load_score_net
from erta_bench.galaxy._pictures import as_brightness, write_pictures
from erta_bench.galaxy._weights import FILES, INSTALL, find_weights, read_leaves

# the models of the catalogue, one line each
load_hsc32, load_hsc32_noise = partial(load_flow, "hsc32"), partial(load_noise, "hsc32")
load_hsc64, load_hsc64_noise = partial(load_flow, "hsc64"), partial(load_noise, "hsc64")
load_ztf32, load_ztf32_noise = partial(load_flow, "ztf32"), partial(load_noise, "ztf32")
load_ztf64, load_ztf64_noise = partial(load_flow, "ztf64"), partial(load_noise, "ztf64")
load_lsst60, load_lsst60_noise = partial(load_flow, "lsst60"), partial(load_noise, "lsst60")
load_quasar72, load_quasar72_noise = partial(load_flow, "quasar72"), partial(load_noise, "quasar72")
load_roman120, load_roman120_noise = partial(load_flow, "roman120"), partial(load_noise, "roman120")

__all__ = [
    "FILES",
    "INSTALL",
    "Galaxy",
    "GalaxyFlow",
    "GalaxyNoise",
    "ScoreConfig",
    "ScoreNet",
    "as_brightness",
    "find_weights",
    "load_flow",
    "load_hsc32",
    "load_hsc32_noise",
    "load_hsc64",
    "load_hsc64_noise",
    "load_lsst60",
    "load_lsst60_noise",
    "load_noise",
    "load_quasar72",
    "load_quasar72_noise",
    "load_roman120",
    "load_roman120_noise",
    "load_score_net",
    "load_ztf32",
    "load_ztf32_noise",
    "load_ztf64",
    "load_ztf64_noise",
    "read_leaves",
    "write_pictures",
]
