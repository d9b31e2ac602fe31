"""The input and output of one run of the masked loop, and what fits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from erta_framework.calibration import Profile
from erta_framework.errors import InputError
from erta_framework.session import Trace


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MaskedRequest:
    """The input of one run of the loop.

    Attributes:
        ids: Tokens `[B, L]`; those to decode are the mask.
        start: Where the answer begins; everything before is prompt.
        seeds: A seed for each sample, for Gumbel noise and random orders.
        seen: Which positions are real, `[B, L]` booleans; False is padding. None for all.
        request_id: Name in traces.
    """

    ids: Tensor
    start: int = 0
    seeds: tuple[int, ...]
    seen: Tensor | None = None
    request_id: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class MaskedResult:
    """The output of one run of the loop.

    Attributes:
        ids: Decoded tokens, `[B, L]`.
        trace: What ran, and why.
        emitted: Profiles that profilers emitted.
    """

    ids: Tensor
    trace: Trace
    emitted: tuple[Profile, ...]


def check_request(request: MaskedRequest, mask_id: int) -> None:
    """Refuse tokens that cannot be decoded.

    Raises:
        InputError: No batch of tokens, nothing to decode, masks in the prompt, or seeds or padding
            that do not fit.
    """
    ids = request.ids
    if ids.ndim != 2 or ids.dtype != torch.long or not ids.numel():
        raise InputError(f"ids must be int64 [B, L], got {tuple(ids.shape)} {ids.dtype}")
    if not 0 <= request.start < ids.shape[1]:
        raise InputError(f"the answer starts at {request.start}, outside {ids.shape[1]} tokens")
    if bool((ids[:, : request.start] == mask_id).any()):
        raise InputError(f"the prompt, before position {request.start}, holds the mask {mask_id}")
    if not bool((ids[:, request.start :] == mask_id).any()):
        raise InputError(f"nothing is masked: no position from {request.start} on is {mask_id}")
    if len(request.seeds) != len(ids):
        raise InputError(f"{len(request.seeds)} seeds for {len(ids)} samples; give one a sample")
    if request.seen is not None and (
        request.seen.shape != ids.shape or request.seen.dtype != torch.bool
    ):
        raise InputError(
            f"seen is {tuple(request.seen.shape)} {request.seen.dtype}, the tokens "
            f"{tuple(ids.shape)}; give one boolean a token"
        )
