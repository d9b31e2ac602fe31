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

from collections.abc import Callable, Mapping
from typing import Any

import diffusers
from torch import Tensor

from erta_framework import CFG, Sampler
from erta_framework.sampling.solvers import FlowAdamsBashforth2
from erta_integrations.diffusers.bundled import PipelineModel, request
from erta_integrations.diffusers.bundled import pipeline as model_pipeline
from erta_integrations.shapes_wan.accuracy import measure_words
from erta_integrations.shapes_wan.data import FRAMES
from erta_integrations.shapes_wan.model import ShapesWan, load_model

__all__ = ["SCHEDULERS", "WAN", "grid", "pipeline", "request"]

SHIFT = 3.0
TEMPORAL = 4
"""The temporal factor that `WanPipeline` assumes if there is no VAE."""
SCHEDULERS: Mapping[str, Callable[[], Any]] = {
    "flow_euler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=SHIFT),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT
    ),
    "dpmpp": lambda: diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT
    ),
    "heun": lambda: diffusers.FlowMatchHeunDiscreteScheduler(shift=SHIFT),
}
"""`unipc` is configured as in the published Wan pipelines, whose default it is. `dpmpp` is
DPM-Solver++ 2M on the same sigmas. `heun` calls the network twice per step, except in the last."""


def grid(name: str, num_steps: int) -> tuple[float, ...]:
    """The `num_steps + 1` sigmas of a scheduler, for `Sampler(sigmas=...)`.

    Example:
        >>> [round(sigma, 3) for sigma in grid("flow_euler", 3)]
        [1.0, 0.751, 0.009, 0.0]
    """
    scheduler = WAN.make_scheduler(name)
    scheduler.set_timesteps(num_steps)
    return tuple(scheduler.sigmas.tolist())


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


def make_fine_sampler(num_steps: int, guidance_scale: float, batch_size: int) -> Sampler:
    """A second-order sampler of the own loop on the pipeline's grid, nearly exact."""
    return Sampler(
        solver=FlowAdamsBashforth2(shift=SHIFT),
        guidance=CFG(scale=guidance_scale),
        sigmas=grid("flow_euler", num_steps),
        batch_size=batch_size,
    )


def get_frames(output: Any) -> Tensor:
    """Take the videos `[B, 3, 5, 16, 16]` from what the pipeline returned."""
    found: Tensor = output.frames
    return found


WAN = PipelineModel(
    name="shapes-wan",
    kind=ShapesWan,
    pipeline="WanPipeline",
    network="transformer",
    settings=dict.fromkeys(("tokenizer", "text_encoder", "vae")),
    schedulers=SCHEDULERS,
    grid=f"shift {SHIFT:g}",
    samples=get_frames,
    fine=make_fine_sampler,
    arguments=lambda *_: {"num_frames": (FRAMES - 1) * TEMPORAL + 1},
    layout="BCFHW",
    parts=(r"blocks\.\d+\.(attn1|attn2|ffn)",),
    shown=measure_words,
)
