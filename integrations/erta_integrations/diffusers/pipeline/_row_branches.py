"""Which guidance branch each row of a batched network call belongs to."""

from __future__ import annotations

import torch
from torch import Tensor

from erta_integrations.diffusers.pipeline._call_frame import CallFrame


def find_row_branches(call: CallFrame, latents: Tensor) -> tuple[str, ...]:
    """The branches of the rows of a call, in chunks of equal size; empty where that is not known.

    A pipeline that stacks its branches stacks their prompt embeddings. So the half that equals the
    embeddings of the negative prompt is `"uncond"`. Values are compared, once a request.

    Args:
        call: The running call of the pipeline.
        latents: The latents of its first network call, `[rows, C, ...]`.
    """
    values = call.values
    negative, stacked = values.get("negative_prompt_embeds"), values.get("prompt_embeds")
    if not isinstance(negative, Tensor) or not isinstance(stacked, Tensor):
        return ()
    rows = latents.shape[0]
    fits = stacked.shape[0] == rows == 2 * negative.shape[0]
    if not fits or stacked.shape[1:] != negative.shape[1:]:
        return ()
    first, second = (torch.equal(half, negative.to(half)) for half in stacked.chunk(2))
    if first == second:  # equal prompts, or a pipeline that does something else
        return ()
    return ("uncond", "cond") if first else ("cond", "uncond")
