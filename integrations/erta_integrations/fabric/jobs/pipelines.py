"""Requests of a job that a whole pipeline samples, as `erta sample --pipeline` has it."""

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
from erta_integrations.fabric.jobs.prompts import Item
from erta_integrations.fabric.jobs.work import Made, described, made


class PipelineWork:
    """A loaded pipeline, as `erta sample --pipeline` has it.

    Args:
        run: Its `sample(prompts, policies, seed=..., **options)` gives `Samples`.
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
            "options": dict(sorted(self._options.items())),
            "policies": [described(policy) for policy in self._policies],
        }

    def check(self, overrides: Mapping[str, Any]) -> tuple[Policy, ...]:
        """The policies of these overrides.

        Raises:
            ConfigError: A value is of the wrong type or names something unknown.
        """
        construct(
            PipelineOptions, {k: v for k, v in overrides.items() if k != "policies"}, "request"
        )
        if "policies" not in overrides:
            return self._policies
        found: tuple[Policy, ...] = self._cached(json.dumps(overrides["policies"]))
        return found

    def sample(self, items: Sequence[Item]) -> list[Made]:
        """Sample requests of equal overrides, one after another."""
        policies = self.check(items[0].overrides)
        changes = {k: v for k, v in items[0].overrides.items() if k != "policies"}
        options = {**self._options, **changes}
        settings = {
            **self.identity(),
            "options": dict(sorted(options.items())),
            "policies": [described(policy) for policy in policies],
        }
        found: list[Made] = []
        for item in items:
            result = self._run.sample([item.prompt], policies, seed=item.seed, **options)
            found += made([item], result, settings, torch.device(self._run.pipe.device))
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """What a request may ask of a pipeline."""

    steps: int | None = None
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None
