"""shapes-wan inside diffusers' unmodified `WanPipeline`, with the schedulers that are used for Wan.

Without a VAE the pipeline assumes a temporal factor of 4, so it is asked for 17 frames to get 5.
`erta_integrations.diffusers.bundled` explains the rest.

The differences from the own loop (`Sampler`):

* The grid. Before its shift, `FlowMatchEulerDiscreteScheduler` spreads N sigmas from 1 to 0.003,
  not from 1 to 1/N, so its last step, to 0, is very small. `Sampler(sigmas=grid(...))` has the same
  grid, and gives the same samples bit for bit.
* Moved steps. The scheduler holds a moved sigma in float32, the own loop in float64.
* `unipc` and `dpmpp`. The own loop does not have these multistep solvers. They pass whole numbers
  as timesteps to the network.
"""

from __future__ import annotations

from typing import Any

from erta_integrations.diffusers.bundled import pipeline as model_pipeline
from erta_integrations.diffusers.bundled import request
from erta_integrations.shapes_wan.model import SCHEDULERS, WAN, ShapesWan, grid, load_model

__all__ = ["SCHEDULERS", "WAN", "grid", "pipeline", "request"]


def pipeline(scheduler: str = "flow_euler", *, model: ShapesWan | None = None) -> Any:
    """Build an unmodified `diffusers.WanPipeline` around the transformer of shapes-wan.

    Call it with `**request(...)`; it returns videos `[B, 3, 5, 16, 16]` in [-1, 1].

    Args:
        scheduler: A name of `SCHEDULERS`, all with shift 3.
        model: The model; by default the trained one that ships with the package.

    Raises:
        InputError: The scheduler is unknown.
        MissingExtraError: transformers, which `WanPipeline` imports, is not installed.

    Example:
        >>> model = ShapesWan()
        >>> pipe = pipeline(model=model)
        >>> asked = request(model, ["a red circle moving left"], seeds=[0], num_steps=2)
        >>> pipe(**asked).frames.shape
        torch.Size([1, 3, 5, 16, 16])
    """
    return model_pipeline(model if model is not None else load_model(), scheduler)
