"""The caches of diffusers and cache-dit, each switched on as its documentation shows it.

Settings are those of the cache's own configuration class, under its own names; what is not given
is that class's default.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch

from erta_framework.errors import InputError, suggest
from erta_framework.optional_dependencies import MissingExtraError

BY_HAND_CLOCK = (
    "with a current_timestep_callback written by hand: the pipeline has no current_timestep"
)


@dataclass(frozen=True, slots=True)
class Target:
    """What a cache is switched on for.

    Attributes:
        pipe: A pipeline that nothing was done to.
        networks: Its denoising networks.
        layout: Order of the latents' dimensions, such as `"BCFHW"`.
        batched: Whether both halves of guidance go through the network in one call.
        undo: What else has to be put back afterwards.
    """

    pipe: Any
    networks: tuple[Any, ...]
    layout: str = "BCFHW"
    batched: bool = False
    undo: list[Callable[[], None]] = field(default_factory=list, repr=False, compare=False)


def has_clock(pipe: Any) -> bool:
    """Whether the pipeline has the attribute that the documented callback reads."""
    return hasattr(type(pipe), "current_timestep")


def make_clock(target: Target) -> Callable[[], float]:
    """The documented `current_timestep_callback`, or one that follows the scheduler."""
    if has_clock(target.pipe):
        return lambda: target.pipe.current_timestep
    scheduler, last = target.pipe.scheduler, [1000.0]
    own = scheduler.step

    @functools.wraps(own)
    def step(*args: Any, **kwargs: Any) -> Any:
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        last[0] = float(torch.as_tensor(timestep).max())
        return own(*args, **kwargs)

    vars(scheduler)["step"] = step
    target.undo.append(lambda: vars(scheduler).pop("step"))
    return lambda: last[0]


def need_nothing(_: Target, __: Mapping[str, Any]) -> dict[str, Any]:
    """For caches of which no setting depends on the pipeline."""
    return {}


def need_clock(target: Target, _: Mapping[str, Any]) -> dict[str, Any]:
    """The timestep, for caches that skip within a range of timesteps."""
    return {"current_timestep_callback": make_clock(target)}


def need_faster_cache(target: Target, _: Mapping[str, Any]) -> dict[str, Any]:
    """The timestep and the latents' layout, and whether a batch has no half to skip."""
    return {
        "current_timestep_callback": make_clock(target),
        "tensor_format": target.layout,
        "is_guidance_distilled": not target.batched,
    }


def need_mag_cache(_: Target, settings: Mapping[str, Any]) -> dict[str, Any]:
    """As many steps as MagCache has ratios, unless the settings say otherwise."""
    ratios = settings.get("mag_ratios")
    return {} if ratios is None else {"num_inference_steps": len(ratios)}


@dataclass(frozen=True, slots=True)
class Rival:
    """One cache of another project.

    Attributes:
        config: Its configuration class, in `module`.
        apply: Function of `module` that switches it on for a network without `enable_cache`;
            empty for a cache that takes the whole pipeline.
        blocks: Whether it skips whole blocks; else parts of them, and every block still runs.
        needed: Gives the settings that follow from the pipeline.
        beside: Settings that its `enable_cache` takes beside the configuration: an object, or the
            name of a class of `module`.
        module: Holds the configuration class and the function.
        package: What has to be installed.
    """

    config: str
    apply: str = ""
    blocks: bool = True
    needed: Callable[[Target, Mapping[str, Any]], dict[str, Any]] = need_nothing
    beside: tuple[str, ...] = ()
    module: str = "diffusers.hooks"
    package: str = "diffusers"

    @property
    def absence(self) -> str:
        """Why it cannot be run here, with the remedy; empty if it can."""
        if find_spec(self.package) is None:
            return f"{self.package} is not installed; pip install {self.package.replace('_', '-')}"
        if not hasattr(importlib.import_module(self.module), self.config):
            return f"{self.package} {version(self.package)} has no {self.config}; install a newer"
        return ""

    def check(self, settings: Mapping[str, Any]) -> None:
        """Refuse what cannot be switched on.

        Raises:
            MissingExtraError: What it needs is not installed.
            InputError: The configuration has no such setting.
        """
        if self.absence:
            raise MissingExtraError(self.absence)
        known = [*(each.name for each in dataclasses.fields(self._class)), *self.beside]
        for name in settings:
            if name not in known:
                raise InputError(f"{self.config} has no {name!r}; {suggest(name, known)}")

    @property
    def _class(self) -> Any:
        return getattr(importlib.import_module(self.module), self.config)

    def configuration(self, target: Target, settings: Mapping[str, Any]) -> Any:
        """The cache's own configuration object."""
        return self._class(**{**self.needed(target, settings), **settings})

    def enable(self, target: Target, settings: Mapping[str, Any]) -> str:
        """Switch it on, for every network with a configuration of its own.

        Returns:
            What a user of this pipeline has to add by hand; empty for nothing.
        """
        if not self.apply:
            module = importlib.import_module(self.module)
            own = {name: value for name, value in settings.items() if name not in self.beside}
            beside = {
                name: self._make_beside(value) if isinstance(value, str) else value
                for name, value in settings.items()
                if name in self.beside
            }
            config = self.configuration(target, own)
            module.enable_cache(target.pipe, cache_config=config, **beside)
            return ""
        for network in target.networks:
            config = self.configuration(target, settings)
            enable = getattr(network, "enable_cache", None)
            if enable is None:
                getattr(importlib.import_module(self.module), self.apply)(network, config)
            else:
                enable(config)
        hand = self.needed in (need_clock, need_faster_cache) and not has_clock(target.pipe)
        return BY_HAND_CLOCK if hand else ""

    def _make_beside(self, name: str) -> Any:
        """An object of a class of the module, with that class's defaults.

        Raises:
            MissingExtraError: This version has no such class.
        """
        module = importlib.import_module(self.module)
        if not hasattr(module, name):
            raise MissingExtraError(
                f"{self.package} {version(self.package)} has no {name}; install a newer"
            )
        return getattr(module, name)()

    def disable(self, target: Target) -> None:
        """Switch it off by its own means, and put back what was set beside it."""
        if not self.apply:
            importlib.import_module(self.module).disable_cache(target.pipe)
        for network in target.networks if self.apply else ():
            if network.is_cache_enabled:
                network.disable_cache()
        while target.undo:
            target.undo.pop()()


def read_rival_versions() -> dict[str, str]:
    """The version of cache-dit, where it is installed; that of diffusers is in every record."""
    try:
        return {"cache-dit": version("cache-dit")}
    except PackageNotFoundError:
        return {}


RIVALS: dict[str, Rival] = {
    "FirstBlockCache": Rival("FirstBlockCacheConfig", "apply_first_block_cache"),
    "MagCache": Rival("MagCacheConfig", "apply_mag_cache", needed=need_mag_cache),
    "SeaCache": Rival("SeaCacheConfig", "apply_sea_cache"),
    "TaylorSeer": Rival("TaylorSeerCacheConfig", "apply_taylorseer_cache", blocks=False),
    "PyramidAttentionBroadcast": Rival(
        "PyramidAttentionBroadcastConfig",
        "apply_pyramid_attention_broadcast",
        blocks=False,
        needed=need_clock,
    ),
    "FasterCache": Rival(
        "FasterCacheConfig", "apply_faster_cache", blocks=False, needed=need_faster_cache
    ),
    "cache-dit": Rival(
        "DBCacheConfig", beside=("calibrator_config",), module="cache_dit", package="cache_dit"
    ),
}
"""Every cache by name."""
