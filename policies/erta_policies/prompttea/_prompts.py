"""How complex a prompt is: its embedding compared with those of simple and complex prompts."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from erta_framework import Call, Profile
from erta_framework.calibration import Entry, ProfileKind
from erta_framework.errors import ProfileError
from erta_framework.session import TEXT

KIND = ProfileKind(
    "prompt_profiler",
    {"directions": Entry(shape="2 D", least=None), "samples": Entry(shape="2", counts=True)},
    facts=("tokens",),
)
REQUIRED = TEXT
IDENTITY = ("model.network", "model.config", "model.class", "model.adapters")
"""Facts of a run that the embeddings are checked against: those of the network alone."""
GUARD = 1e-6
"""Added to the sum of both similarities, as in the published code."""

Tokens = Literal["valid", "all"]
"""Whether the embedding is the mean over the tokens that hold text, or over padding as well."""
Half = Literal["first", "second"]
"""Which half of a batched pair of branches holds the prompts."""

SIMPLE = (
    "A red apple on a white table.",
    "A cat sleeping on a sofa.",
    "The moon in a clear night sky.",
    "A candle burning in a dark room.",
    "A sailing boat on a calm lake.",
    "A man reading a book on a bench.",
)
"""Our own reference prompts of the simple kind: one subject, little motion, a plain scene."""
COMPLEX = (
    "A crowded night market in the rain, vendors toss noodles over open flames while umbrellas, "
    "scooters and neon signs are mirrored in the puddles, the camera weaving between the stalls.",
    "Two knights duel on a collapsing stone bridge as a dragon circles overhead, sparks, falling "
    "rubble and torn banners filling the air, filmed in one long tracking shot.",
    "A flock of hundreds of starlings forms shifting spirals over a harbour at dusk while a steam "
    "train crosses a viaduct and fireworks burst behind the cranes.",
    "A street parade of dancers in feathered costumes, drummers, stilt walkers and children with "
    "balloons passes old houses, confetti drifting through alternating sunlight and shade.",
    "An astronaut repairs a spinning satellite above a thunderstorm on Earth, loose cables, tools "
    "and drops of water floating past while the sun rises and reflections sweep over the visor.",
    "Time lapse of a city crossing from dawn to midnight: trams, cyclists, crowds with shopping "
    "bags, changing weather, lights going on in every window, clouds racing across glass towers.",
    "A chef, three waiters and an impatient dog collide in a narrow kitchen, plates, flour and "
    "tomatoes flying in slow motion while steam rises and the camera turns around them.",
)
"""Our own reference prompts of the complex kind: many subjects, much motion, moving cameras."""


def pool_embedding(call: Call, tokens: Tokens, half: Half | None = None) -> Tensor:
    """The mean text embedding of each sample, `[B, D]` in float32.

    Args:
        call: Offers the signals `prompt`, `[B, tokens, D]`, and `prompt_mask`, `[B, tokens]`.
        tokens: Which tokens the mean is over.
        half: Which half of a batched pair of branches to take.
    """
    embedded = call.feature("prompt").float()
    weights = torch.ones(embedded.shape[:2], device=embedded.device)
    if tokens == "valid":
        valid = call.feature("prompt_mask").to(weights)
        # a prompt of padding alone, such as the empty one, has nothing else to be averaged
        weights = torch.where(valid.any(dim=1, keepdim=True), valid, weights)
    if half is not None:
        place = 0 if half == "first" else 1
        embedded, weights = embedded.chunk(2)[place], weights.chunk(2)[place]
    total = (embedded * weights.unsqueeze(-1)).sum(dim=1)
    return total / weights.sum(dim=1, keepdim=True)


def measure_complexity(embedded: Tensor, references: Profile) -> list[float]:
    """Rho of each prompt, `c / (s + c + 1e-6)` of its mean cosine similarities with both sets.

    Args:
        embedded: Mean text embeddings, `[B, D]`.
        references: Profile of a `PromptProfiler`.

    Raises:
        ProfileError: The references are of another width, or a set is missing.
    """
    sums, samples = references.statistics["directions"], references.statistics["samples"]
    if sums.shape[1] != embedded.shape[1]:
        raise ProfileError(
            f"the reference prompts were embedded in {sums.shape[1]} dimensions, this run's "
            f"prompts have {embedded.shape[1]}; embed them with this pipeline's text encoder"
        )
    if not bool((samples > 0).all()):
        raise ProfileError(
            f"the references hold {int(samples[0])} simple and {int(samples[1])} complex prompts; "
            "calibrate with both sets, `erta calibrate --policy prompt_threshold`"
        )
    unit = torch.nn.functional.normalize(embedded.double().cpu(), dim=-1)
    simple, complex_ = (unit @ (sums / samples.unsqueeze(1)).T).unbind(dim=1)
    found: list[float] = (complex_ / (simple + complex_ + GUARD)).tolist()
    return found


def interpolate_threshold(rho: float, low: float, high: float, sharpness: float) -> float:
    """PromptTea's threshold, `w * low + (1 - w) * high` with `w = sigmoid(sharpness (rho - 1/2))`.

    Example:
        >>> round(interpolate_threshold(0.52, 0.09, 0.23, 50.0), 3)
        0.128
    """
    # the logistic function, written so that it cannot overflow
    weight = 0.5 + 0.5 * math.tanh(0.5 * sharpness * (rho - 0.5))
    return weight * low + (1.0 - weight) * high
