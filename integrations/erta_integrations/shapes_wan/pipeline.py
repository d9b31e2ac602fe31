"""shapes-wan inside diffusers' unmodified `WanPipeline`, with the schedulers that Wan is run with.

The pipeline has neither text encoder nor VAE: prompts are encoded by the model's own word
embedding, and its latents are pixels. Without a VAE the pipeline assumes a spatial factor of 8 and
a temporal one of 4, so it is asked for 128 x 128 pixels and 17 frames to get 16 x 16 and 5.

How it differs from the own loop (`Sampler`), where it does:

* The grid. `FlowMatchEulerDiscreteScheduler` spreads its N sigmas from 1 to 0.003 instead of 1 to
  1/N before it shifts them, so its last step, to 0, is almost nothing.
  `Sampler(sigmas=grid(...))` is on the same grid, and gives the same samples bit for bit.
* Time-warps. A moved sigma is held in float32 by the scheduler and in float64 by the own loop.
* `unipc` and `dpmpp` are multistep solvers that the own loop does not have, and tell the network
  whole numbers as timesteps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import diffusers
import torch

from erta_framework.errors import InputError
from erta_framework.extras import require_extra
from erta_integrations.shapes_wan.data import FRAMES, SIZE
from erta_integrations.shapes_wan.model import ShapesWan, load_model

SHIFT = 3.0
SPATIAL, TEMPORAL = 8, 4
"""What `WanPipeline` assumes of a VAE that is not there."""
SCHEDULERS: Mapping[str, Callable[[], Any]] = {
    "flow_euler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=SHIFT),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT
    ),
    "dpmpp": lambda: diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT
    ),
}
"""`unipc` is set up as in the published Wan pipelines, whose default it is; `dpmpp` is
DPM-Solver++ 2M on the same sigmas."""


def make_scheduler(name: str) -> Any:
    """A new scheduler of `SCHEDULERS`.

    Raises:
        InputError: The name is unknown.
    """
    if name not in SCHEDULERS:
        raise InputError(f"scheduler {name!r} is unknown; give {' or '.join(SCHEDULERS)}")
    return SCHEDULERS[name]()


def grid(name: str, num_steps: int) -> tuple[float, ...]:
    """The `num_steps + 1` sigmas of a scheduler, as `Sampler(sigmas=...)` takes them.

    Example:
        >>> [round(sigma, 3) for sigma in grid("flow_euler", 3)]
        [1.0, 0.751, 0.009, 0.0]
    """
    scheduler = make_scheduler(name)
    scheduler.set_timesteps(num_steps)
    return tuple(scheduler.sigmas.tolist())


def pipeline(scheduler: str = "flow_euler", *, model: ShapesWan | None = None) -> Any:
    """An unmodified `diffusers.WanPipeline` around the transformer of shapes-wan.

    Call it with what `request` gives, and it returns videos `[B, 3, 5, 16, 16]` in [-1, 1].

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
    require_extra("transformers", extra="demo", wanted_by="shapes-wan in a WanPipeline")
    transformer = (model if model is not None else load_model()).transformer
    pipe = diffusers.WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=make_scheduler(scheduler),
        transformer=transformer,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def request(
    model: ShapesWan,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    num_steps: int = 50,
    guidance_scale: float = 3.0,
) -> dict[str, Any]:
    """The arguments of one call of `pipeline()`, one prompt and one seed a sample.

    The noise of a sample depends on its seed alone, and is that of `Sampler`.

    Raises:
        ValueError: A prompt has a word outside the vocabulary.
    """
    conditions = model.encode([*prompts, *[""] * len(prompts)])
    embeds, negative = conditions.chunk(2)
    return {
        "prompt_embeds": embeds,
        "negative_prompt_embeds": negative,
        "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
        "height": SIZE * SPATIAL,
        "width": SIZE * SPATIAL,
        "num_frames": (FRAMES - 1) * TEMPORAL + 1,
        "num_inference_steps": num_steps,
        "guidance_scale": guidance_scale,
        "output_type": "latent",
    }
