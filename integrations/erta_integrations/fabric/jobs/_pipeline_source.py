"""Samples of a job that a whole pipeline makes, as `erta sample --pipeline` loads it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from erta_framework.config import build_policies, construct
from erta_framework.plugins import Policy
from erta_framework.session import Seam
from erta_integrations.fabric.jobs._prompts import Item
from erta_integrations.fabric.jobs._sample_source import (
    SampledItem,
    describe_setting,
    pair_samples,
)


class PipelineSource:
    """A loaded pipeline; it samples the requests of a batch one after another.

    Args:
        run: Its `sample(prompts, policies, seed=..., **options)` returns `Samples`.
        policies: In call order.
        options: Those of every request that overrides none; None takes the pipeline's own.
    """

    known = ("steps", "guidance", "height", "width", "frames", "policies")

    def __init__(self, run: Any, policies: Sequence[Policy], options: Mapping[str, Any]) -> None:
        self._run, self._policies = run, tuple(policies)
        self._options = {key: value for key, value in options.items() if value is not None}
        self._cached = lru_cache(maxsize=64)(lambda text: build_policies(json.loads(text)))

    def identity(self) -> dict[str, Any]:
        """Pipeline, options and policies, and the seam where it is not that of the latents."""
        seam = getattr(self._run, "seam", Seam.LATENT)
        return {
            **({} if seam == Seam.LATENT else {"seam": str(seam)}),
            "pipeline": f"{type(self._run.pipe).__name__} {Path(self._run.source).name}",
            "dtype": str(getattr(self._run.pipe, "dtype", "unknown")).removeprefix("torch."),
            **describe_request(self._options, self._policies),
        }

    def check(self, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[Policy, ...]]:
        """The options and policies of these overrides.

        Raises:
            ConfigError: A value is of the wrong type or names something unknown.
        """
        changes = {key: value for key, value in overrides.items() if key != "policies"}
        construct(PipelineOverrides, changes, "request")
        policies = self._policies
        if "policies" in overrides:
            policies = self._cached(json.dumps(overrides["policies"]))
        return {**self._options, **changes}, policies

    def sample(self, items: Sequence[Item]) -> list[SampledItem]:
        """Sample requests of equal overrides."""
        options, policies = self.check(items[0].overrides)
        settings = {**self.identity(), **describe_request(options, policies)}
        device = torch.device(self._run.pipe.device)
        found: list[SampledItem] = []
        for item in items:
            result = self._run.sample([item.prompt], policies, seed=item.seed, **options)
            found += pair_samples([item], result, settings, device)
        return found


def describe_request(options: Mapping[str, Any], policies: Sequence[Policy]) -> dict[str, Any]:
    """Options and policies as JSON holds them."""
    return {
        "options": dict(sorted(options.items())),
        "policies": [describe_setting(policy) for policy in policies],
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineOverrides:
    """What a request may ask of a pipeline."""

    steps: int | None = None
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None
