"""What makes the samples of a job, and what a sample's file says about it."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import safetensors
import torch
from torch import Tensor

import erta_framework
from erta_framework import Engine
from erta_framework.calibration import Profile
from erta_framework.config import build_policies, build_run, construct
from erta_framework.errors import ConfigError
from erta_framework.plugins import Policy
from erta_framework.sampling import CFG, Guidance, Sampler, Samples, SamplingLoop, TextModel
from erta_framework.session import Trace
from erta_integrations.fabric.jobs._prompts import Item
from erta_integrations.fabric.jobs._store import SCHEMA


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class SampledItem:
    """One sample, after it was sampled.

    Attributes:
        tensors: What goes into its file.
        facts: What goes into the header; depends on nothing but the request.
        seconds: Wall seconds, which do not.
    """

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    seconds: float


class SampleSource(Protocol):
    """What a job needs of whatever makes its samples."""

    @property
    def known(self) -> tuple[str, ...]:
        """Keys that a request may override."""
        ...

    def identity(self) -> dict[str, Any]:
        """The facts that decide what is made; two jobs are the same if theirs are equal."""
        ...

    def check(self, overrides: Mapping[str, Any]) -> object:
        """Raise an `ErtaError` on impossible overrides."""
        ...

    def sample(self, items: Sequence[Item]) -> list[SampledItem]:
        """Sample requests of equal overrides, in their order."""
        ...


class SamplerSource:
    """A `Sampler` and the model that it samples with, on one device.

    Args:
        sampler: Its settings serve every request that overrides none.
        model: Encodes the prompts and predicts.
        device: Where this rank samples.
    """

    known = ("steps", "sigmas", "guidance", "policies")

    def __init__(self, sampler: Sampler, model: TextModel, device: torch.device) -> None:
        self._base, self._model = copy.copy(sampler), model
        self._base.device = device
        self._sampler = lru_cache(maxsize=64)(self._build)

    def identity(self) -> dict[str, Any]:
        """Settings and model."""
        return {
            **describe_sampler(self._base),
            "model": {
                "class": type(self._model).__name__,
                **self._model.fingerprint(),
                "latent_shape": list(self._model.latent_shape),
            },
        }

    def check(self, overrides: Mapping[str, Any]) -> Sampler:
        """The sampler of these overrides.

        Raises:
            ConfigError: A value is of the wrong type or names something unknown.
            ErtaError: The settings do not go together.
        """
        return self._sampler(json.dumps(overrides, sort_keys=True))

    def sample(self, items: Sequence[Item]) -> list[SampledItem]:
        """Sample requests of equal overrides as one batch."""
        sampler = copy.copy(self.check(items[0].overrides))
        sampler.batch_size = len(items)  # the job decides what is a batch
        result = sampler.sample(
            self._model, [item.prompt for item in items], seeds=[item.seed for item in items]
        )
        settings = {**self.identity(), **describe_sampler(sampler), "batch_size": len(items)}
        return pair_samples(items, result, settings, self._base.device)

    def _build(self, text: str) -> Sampler:
        overrides, twin = json.loads(text), copy.copy(self._base)
        if "policies" in overrides:
            twin.policies = build_policies(overrides["policies"])
        if "guidance" in overrides:
            twin.guidance = build_guidance(overrides["guidance"], twin.guidance)
        grid = {key: overrides[key] for key in ("steps", "sigmas") if key in overrides}
        if grid:
            asked = construct(StepGrid, grid, where="request")
            steps = twin.schedule.num_steps if asked.steps is None else asked.steps
            twin.schedule = twin.solver.schedule(steps, asked.sigmas)
        twin.loop = SamplingLoop(
            Engine(twin.policies), twin.solver, twin.guidance, twin.loop.memory
        )
        return twin


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepGrid:
    """The step grid that a request asks for."""

    steps: int | None = None
    sigmas: tuple[float, ...] | None = None


def build_guidance(value: object, default: Guidance) -> Guidance:
    """The guidance that a request asks for; a number is a scale for the job's own guidance.

    Raises:
        ConfigError: The name or an option is unknown, or there is no scale to set.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        return build_run({"guidance": value}).guidance
    if not isinstance(default, CFG):
        raise ConfigError(
            f"guidance is {value!r}, a scale, but the job's guidance is {default!r}; write "
            "{cfg: {scale: ...}}"
        )
    return dataclasses.replace(default, scale=float(value))


def pair_samples(
    items: Sequence[Item], result: Samples, settings: Mapping[str, Any], device: torch.device
) -> list[SampledItem]:
    """The samples of one batch, each with the facts for its file."""
    (trace,) = result.traces
    versions = {
        "erta-framework": erta_framework.__version__,
        "torch": torch.__version__,
        "safetensors": safetensors.__version__,
    }
    return [
        SampledItem(
            {"sample": sample},
            {
                "schema": SCHEMA,
                **dataclasses.asdict(item),
                "settings": dict(settings),
                "trace": summarize_trace(trace, place),
                "device": device.type,
                "versions": versions,
            },
            result.seconds / len(items),
        )
        for place, (item, sample) in enumerate(zip(items, result.samples, strict=True))
    ]


def summarize_trace(trace: Trace, place: int) -> dict[str, Any]:
    """What ran for one sample of a batch, without times, which differ from run to run."""
    computed, branch_calls = trace.calls_for(place), sum(1 for _ in trace.calls())
    return {
        "num_steps": trace.num_steps,
        "network_calls": computed,
        "branch_calls": branch_calls,
        "reused_calls": branch_calls - computed,
        "computed_steps": [step.index for step in trace.steps if step.computed_for(place)],
        "history_bytes": trace.history_bytes,
    }


def describe_sampler(sampler: Sampler) -> dict[str, Any]:
    """What decides a sampler's numbers, as JSON holds it."""
    return {
        "policies": [describe_setting(policy) for policy in sampler.policies],
        "solver": repr(sampler.solver),
        "guidance": repr(sampler.guidance),
        "sigmas": list(sampler.schedule.sigmas),
        "precision": sampler.precision,
    }


def name_class(cls: type) -> str:
    """A class by the public package that offers it: private modules may move between versions.

    Example:
        >>> name_class(Sampler)
        'erta_framework.sampling.Sampler'
    """
    public = [part for part in cls.__module__.split(".") if not part.startswith("_")]
    return ".".join([*public, cls.__qualname__])


def describe_setting(value: Any, name: str = "") -> Any:
    """A policy or one of its settings as JSON holds it.

    A profile is named by its digest and not by its path, so that a copy of it is the same job.
    """
    if isinstance(value, Profile):
        return {"profile": value.digest}
    if isinstance(value, Policy):  # every policy is a dataclass
        fields: Any = dataclasses.fields(value)  # type: ignore[arg-type, unused-ignore]
        settings = {f.name: describe_setting(getattr(value, f.name), f.name) for f in fields}
        return {name_class(type(value)): settings}
    if name == "profile" and isinstance(value, str | Path):
        return {"profile": Profile.load(value).digest}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): describe_setting(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [describe_setting(each) for each in value]
    return str(value) if isinstance(value, Path) else type(value).__qualname__
