"""The caches that are compared, each as its documentation shows it.

Thresholds are so high that a method skips whenever it can: the question is whether it works on a
pipeline at all, not how good it is. Where a network has no `enable_cache`, the `apply_*` function
of the same cache is used on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from erta_integrations.diffusers import attach
from erta_integrations.diffusers.bridge import RIVALS, Target

ALWAYS = 1e6
"""A threshold that every step is below."""
ALL_TIMES = (-1, 1001)
"""A range of timesteps that holds all of them."""


@dataclass(frozen=True, slots=True)
class Method:
    """One cache.

    Attributes:
        enable: Switches it on for the rest of the process, for a run of so many steps; returns
            what a user has to add by hand.
        package: What has to be installed for it.
    """

    enable: Callable[[Target, int], str]
    package: str = "diffusers"

    @property
    def installed(self) -> bool:
        """Whether its package can be imported."""
        return find_spec(self.package) is not None


def rival(name: str, settings: Callable[[int], Mapping[str, Any]]) -> Method:
    """A cache of another project, with settings for a number of steps."""
    found = RIVALS[name]
    return Method(lambda target, steps: found.enable(target, settings(steps)), found.package)


def mag(steps: int) -> dict[str, Any]:
    """Ratios of one, which is what its calibration would have to find."""
    return {"threshold": ALWAYS, "max_skip_steps": 2, "mag_ratios": torch.ones(steps)}


def taylor(lite: bool) -> Method:
    """TaylorSeer on the modules it finds by itself, or only on the last projection."""
    settings = {
        "cache_interval": 2,
        "disable_cache_before_step": 2,
        "taylor_factors_dtype": torch.float32,
        "use_lite_mode": lite,
    }
    return rival("TaylorSeer", lambda _: settings)


def pyramid(_: int) -> dict[str, Any]:
    """Every kind of attention, at all times."""
    kinds = ("spatial", "temporal", "cross")
    ranges: dict[str, Any] = {f"{kind}_attention_block_skip_range": 2 for kind in kinds}
    return ranges | {f"{kind}_attention_timestep_skip_range": ALL_TIMES for kind in kinds}


def faster(_: int) -> dict[str, Any]:
    """FasterCache at the times of its defaults, since it needs two computed steps before them."""
    return {
        "temporal_attention_block_skip_range": 2,
        "unconditional_batch_skip_range": 2,
        "attention_weight_callback": lambda _: 0.5,
    }


def cache_dit(_: int) -> dict[str, Any]:
    """DBCache, which always runs the first block of a list."""
    return {
        "Fn_compute_blocks": 1,
        "Bn_compute_blocks": 0,
        "max_warmup_steps": 1,
        "residual_diff_threshold": ALWAYS,
    }


def ours(target: Target, _: int) -> str:
    """Every second step, through `attach`."""
    attach(target.pipe, "skip_policy", every=2).__enter__()
    return ""


METHODS: dict[str, Method] = {
    "erta skip_policy": Method(ours),
    "FirstBlockCache": rival("FirstBlockCache", lambda _: {"threshold": ALWAYS}),
    "MagCache": rival("MagCache", mag),
    "TaylorSeer": taylor(lite=False),
    "TaylorSeer lite": taylor(lite=True),
    "PyramidAttentionBroadcast": rival("PyramidAttentionBroadcast", pyramid),
    "FasterCache": rival("FasterCache", faster),
    "cache-dit": rival("cache-dit", cache_dit),
}
"""Every method by name, ours first."""
