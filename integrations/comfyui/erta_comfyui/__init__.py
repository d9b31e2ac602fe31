"""Caching policies of erta_framework in ComfyUI, at the sampler, whatever the model.

`NODE_CLASS_MAPPINGS` is what ComfyUI reads. The node `ErtaCache` takes a model and gives a model;
`cache_model` does the same in Python.
"""

from ._cache import SamplerCache, cache_model
from ._node import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, ErtaCache

__all__ = [
    "NODE_CLASS_MAPPINGS",
    "NODE_DISPLAY_NAME_MAPPINGS",
    "ErtaCache",
    "SamplerCache",
    "cache_model",
]
