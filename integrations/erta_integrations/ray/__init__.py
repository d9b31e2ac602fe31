"""Jobs and data sets on a Ray cluster.

* `RayLauncher`: the launcher `ray`. Its job is that of Fabric: the same folder, the same bytes.
* `PromptSampler`: a callable class for `ray.data`, which holds a pipeline and samples batches.

From top to bottom: `_launch` and `_actors` alone import Ray; `_job` runs a job or a calibration on
a `Crew` of workers; `_crew` replaces those that are lost; `_worker` is what runs in each of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from erta_integrations.ray._launch import RayLauncher
    from erta_integrations.ray._prompt_sampler import PromptSampler

__all__ = ["PromptSampler", "RayLauncher"]


def __getattr__(name: str) -> Any:
    # the map class does without Ray, which may not be installed where it is tried out
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "_launch" if name == "RayLauncher" else "_prompt_sampler"
    return getattr(import_module(f"{__name__}.{home}"), name)
