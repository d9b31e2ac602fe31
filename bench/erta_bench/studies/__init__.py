"""Studies: one question each, asked of the small trained models, with a record for the docs.

A study is a function from a `StudyRun` to rows, in a file of its own, and a line of `STUDIES`.
"""

from collections.abc import Mapping
from types import MappingProxyType

from erta_bench.studies._corrections import CORRECTIONS
from erta_bench.studies._gates import GATES
from erta_bench.studies._module_tables import MODULE_TABLES
from erta_bench.studies._noise_scale import NOISE_LENGTH, NOISE_SCALE
from erta_bench.studies._plans import PLANS
from erta_bench.studies._quantisation import QUANTISATIONS, count_weight_bytes, quantise
from erta_bench.studies._quantised import QUANTISED
from erta_bench.studies._quantised_layer import LAYERS, QUANTISED_LAYER, draw_inputs, measure_layer
from erta_bench.studies._run import Study, StudyRun, run_study
from erta_bench.studies._settings import MethodSettings, build_row, continue_evenly, spread_evenly
from erta_bench.studies._settings_inside import (
    CLUSCA,
    DEEPCACHE,
    H2CACHE,
    PAB,
    PRECISECACHE,
)
from erta_bench.studies._settings_outputs import (
    FASTERCACHE,
    FREQCA,
    SMOOTHCACHE,
    SPECTRUM,
    TAYLORSEER,
)
from erta_bench.studies._surrogates import SURROGATES
from erta_bench.studies._worst_samples import WORST_SAMPLES

SETTINGS: Mapping[str, MethodSettings] = MappingProxyType(
    {
        "clusca": CLUSCA,
        "deepcache": DEEPCACHE,
        "fastercache": FASTERCACHE,
        "freqca": FREQCA,
        "h2cache": H2CACHE,
        "pab": PAB,
        "precisecache": PRECISECACHE,
        "smoothcache": SMOOTHCACHE,
        "spectrum": SPECTRUM,
        "taylorseer": TAYLORSEER,
    }
)
"""Settings of one method beside each other, by its name."""
STUDIES: Mapping[str, Study] = MappingProxyType(
    {
        "plans": PLANS,
        "noise-scale": NOISE_SCALE,
        "noise-length": NOISE_LENGTH,
        "module-tables": MODULE_TABLES,
        "surrogates": SURROGATES,
        "gates": GATES,
        "quantised": QUANTISED,
        "quantised-layer": QUANTISED_LAYER,
        "corrections": CORRECTIONS,
        "worst-samples": WORST_SAMPLES,
        **{name: settings.as_study() for name, settings in SETTINGS.items()},
    }
)
"""Every study by name."""

__all__ = [
    "LAYERS",
    "QUANTISATIONS",
    "SETTINGS",
    "STUDIES",
    "MethodSettings",
    "Study",
    "StudyRun",
    "build_row",
    "continue_evenly",
    "count_weight_bytes",
    "draw_inputs",
    "measure_layer",
    "quantise",
    "run_study",
    "spread_evenly",
]
