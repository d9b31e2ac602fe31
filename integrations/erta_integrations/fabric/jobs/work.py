"""What samples the requests of a job, and what is said of each sample: a `Sampler` here."""

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
from erta_framework.calibration import Profile
from erta_framework.config import build_guidance, build_policies, construct
from erta_framework.errors import ConfigError
from erta_framework.plugins import Policy
from erta_framework.sampling import CFG, Guidance, Sampler, Samples, TextModel
from erta_framework.session import Trace
from erta_integrations.fabric.jobs.prompts import Item
from erta_integrations.fabric.jobs.store import SCHEMA


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Made:
    """One sample: its tensors, and facts that depend on nothing but the request."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    seconds: float


class Work(Protocol):
    """What a job needs of whatever samples.

    `known` are the keys that a request may override; `identity` gives the facts that decide what
    is made; `check` refuses impossible overrides; `sample` makes requests of equal overrides.
    """

    @property
    def known(self) -> tuple[str, ...]: ...

    def identity(self) -> dict[str, Any]: ...

    def check(self, overrides: Mapping[str, Any]) -> object: ...

    def sample(self, items: Sequence[Item]) -> list[Made]: ...


class SamplerWork:
    """A `Sampler` and the model that it samples with, on one device.

    Args:
        sampler: Its settings are those of every request that overrides none.
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
            **settings_of(self._base),
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

    def sample(self, items: Sequence[Item]) -> list[Made]:
        """Sample requests of equal overrides as one batch."""
        sampler = copy.copy(self.check(items[0].overrides))
        sampler.batch_size = len(items)  # the job decides what is a batch
        result = sampler.sample(
            self._model, [item.prompt for item in items], seeds=[item.seed for item in items]
        )
        settings = {**self.identity(), **settings_of(sampler), "batch_size": len(items)}
        return made(items, result, settings, self._base.device)

    def _build(self, text: str) -> Sampler:
        overrides = json.loads(text)
        if not overrides:
            return self._base
        base = self._base
        grid = {key: overrides[key] for key in ("steps", "sigmas") if key in overrides}
        asked = construct(Grid, grid, where="request")
        twin = Sampler(
            build_policies(overrides["policies"]) if "policies" in overrides else base.policies,
            base.callbacks,
            solver=base.solver,
            guidance=guidance_of(overrides, base.guidance),
            num_steps=base.schedule.num_steps if asked.steps is None else asked.steps,
            sigmas=asked.sigmas,
            precision=base.precision,
            accelerator=base.device.type,
            batch_size=base.batch_size,
        )
        twin.device = base.device
        if not grid:
            twin.schedule = base.schedule
        return twin


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """The step grid that a request asks for."""

    steps: int | None = None
    sigmas: tuple[float, ...] | None = None


def guidance_of(overrides: Mapping[str, Any], default: Guidance) -> Guidance:
    """The guidance of a request; a number is the scale of the job's own.

    Raises:
        ConfigError: The name or an option is unknown, or there is no scale to set.
    """
    if "guidance" not in overrides:
        return default
    value = overrides["guidance"]
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not isinstance(default, CFG):
            raise ConfigError(
                f"guidance is {value!r}, a scale, but the job's guidance is {default!r}; write "
                "{cfg: {scale: ...}}"
            )
        return dataclasses.replace(default, scale=float(value))
    return build_guidance(value)


def made(
    items: Sequence[Item], result: Samples, settings: Mapping[str, Any], device: torch.device
) -> list[Made]:
    """The samples of one batch with their facts."""
    (trace,) = result.traces
    return [
        Made(
            {"sample": sample},
            {
                "schema": SCHEMA,
                "index": item.index,
                "prompt": item.prompt,
                "seed": item.seed,
                "overrides": dict(item.overrides),
                "settings": dict(settings),
                "trace": summarised(trace, place),
                "device": device.type,
                "versions": versions(),
            },
            result.seconds / len(items),
        )
        for place, (item, sample) in enumerate(zip(items, result.samples, strict=True))
    ]


def summarised(trace: Trace, place: int) -> dict[str, Any]:
    """What ran for one sample of a batch, without the times, which differ from run to run."""
    calls = list(trace.calls())
    computed = [call for call in calls if call.computed_for(place)]
    return {
        "num_steps": trace.num_steps,
        "network_calls": len(computed),
        "branch_calls": len(calls),
        "reused_calls": len(calls) - len(computed),
        "computed_steps": sorted({call.index for call in computed}),
        "history_bytes": trace.history_bytes,
    }


def versions() -> dict[str, str]:
    """The libraries that decide the numbers."""
    return {
        "erta-framework": erta_framework.__version__,
        "torch": torch.__version__,
        "safetensors": safetensors.__version__,
    }


def settings_of(sampler: Sampler) -> dict[str, Any]:
    """What decides a sampler's numbers, as JSON holds it."""
    return {
        "policies": [described(policy) for policy in sampler.policies],
        "solver": repr(sampler.solver),
        "guidance": repr(sampler.guidance),
        "sigmas": list(sampler.schedule.sigmas),
        "precision": sampler.precision,
    }


def described(value: Any, name: str = "") -> Any:
    """A policy's settings as JSON holds them; a profile is named by its digest, not its path."""
    if isinstance(value, Profile):
        return {"profile": value.digest}
    if isinstance(value, Policy):
        fields = {f.name: described(getattr(value, f.name), f.name) for f in policy_fields(value)}
        return {f"{type(value).__module__}.{type(value).__qualname__}": fields}
    if name == "profile" and isinstance(value, str | Path):
        return {"profile": Profile.load(value).digest}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): described(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [described(each) for each in value]
    return str(value) if isinstance(value, Path) else type(value).__qualname__


def policy_fields(policy: Policy) -> tuple[dataclasses.Field[Any], ...]:
    """The settings of a policy; every policy is a dataclass."""
    return dataclasses.fields(policy)  # type: ignore[arg-type, unused-ignore]
