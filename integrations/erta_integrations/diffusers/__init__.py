"""Caching on unmodified diffusers pipelines: `attach` drives one, `load` loads one by name.

From top to bottom: `bundled` runs the models that ship with the package; `_loading` and `_attach`
are what users call; `finer` solves a request on a finer grid; `pipeline` follows a pipeline's
calls; `trunk` drives its block stack; `modules` finds the places inside a network and what they
cost; `network` reads and patches one.
"""

from erta_integrations.diffusers._attach import attach
from erta_integrations.diffusers._attachment import Attachment
from erta_integrations.diffusers._loaded_pipeline import LoadedPipeline
from erta_integrations.diffusers._loading import load
from erta_integrations.diffusers.finer import solve_pipeline
from erta_integrations.diffusers.modules import PlaceGroup, inspect_places
from erta_integrations.diffusers.pipeline import CAPABILITIES, Capability, Support
from erta_integrations.diffusers.trunk import inspect

__all__ = [
    "CAPABILITIES",
    "Attachment",
    "Capability",
    "LoadedPipeline",
    "PlaceGroup",
    "Support",
    "attach",
    "inspect",
    "inspect_places",
    "load",
    "solve_pipeline",
]
