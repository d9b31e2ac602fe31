"""The caches that are compared, each as its documentation shows it.

Thresholds are so high that a method skips whenever it can: the question is whether it works on a
pipeline at all, not how good it is. Where a network has no `enable_cache`, the `apply_*` function
of the same cache is used on it.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from diffusers import hooks
from torch import nn

from erta_framework import Call, Compute, Decision, Policy, Reuse, Seam, Step, hookimpl
from erta_integrations.diffusers import attach

ALWAYS = 1e6
"""A threshold that every step is below."""
ALL_TIMES = (-1, 1001)
"""A range of timesteps that holds all of them."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a method is switched on for.

    Attributes:
        pipe: A pipeline that nothing was done to.
        networks: Its denoising networks.
        steps: Steps of the run that follows.
        layout: Order of the latents' dimensions, such as `"BCFHW"`.
        batched: Whether both halves of guidance go through the network in one call.
    """

    pipe: Any
    networks: tuple[nn.Module, ...]
    steps: int
    layout: str
    batched: bool


@dataclass(frozen=True, slots=True)
class Method:
    """One cache.

    Attributes:
        enable: Switches it on for the rest of the process; returns what a user has to add by hand,
            or what tells after the run why nothing was skipped.
        package: What has to be installed for it.
        batch: Samples a run.
    """

    enable: Callable[[Target], str | Callable[[], str]]
    package: str = "diffusers"
    batch: int = 1

    @property
    def installed(self) -> bool:
        """Whether its package can be imported."""
        return find_spec(self.package) is not None


def on_networks(
    apply: Callable[[nn.Module, Any], object], config: Callable[[Target], object]
) -> Method:
    """A cache of diffusers, switched on for every network with a configuration of its own."""

    def enable(target: Target) -> str:
        for network in target.networks:
            own = getattr(network, "enable_cache", None)
            if own is None:
                apply(network, config(target))
            else:
                own(config(target))
        return NO_CLOCK if config in (pyramid, faster) and not has_clock(target.pipe) else ""

    return Method(enable)


NO_CLOCK = "with a current_timestep_callback written by hand: the pipeline has no current_timestep"


def has_clock(pipe: Any) -> bool:
    """Whether the pipeline has the attribute that the documented callback reads."""
    return hasattr(type(pipe), "current_timestep")


def clock(target: Target) -> Callable[[], float]:
    """The documented `current_timestep_callback`, or one that watches the scheduler."""
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
    return lambda: last[0]


def first_block(_: Target) -> object:
    """FirstBlockCache."""
    return hooks.FirstBlockCacheConfig(threshold=ALWAYS)


def mag(target: Target) -> object:
    """MagCache with ratios of one, which is what its calibration would have to find."""
    return hooks.MagCacheConfig(
        threshold=ALWAYS,
        max_skip_steps=2,
        num_inference_steps=target.steps,
        mag_ratios=torch.ones(target.steps),
    )


def taylor(lite: bool) -> Callable[[Target], object]:
    """TaylorSeer on the modules it finds by itself, or only on the last projection."""

    def config(_: Target) -> object:
        return hooks.TaylorSeerCacheConfig(
            cache_interval=2,
            disable_cache_before_step=2,
            taylor_factors_dtype=torch.float32,
            use_lite_mode=lite,
        )

    return config


def pyramid(target: Target) -> object:
    """PyramidAttentionBroadcast on every kind of attention."""
    return hooks.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        temporal_attention_block_skip_range=2,
        cross_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=ALL_TIMES,
        temporal_attention_timestep_skip_range=ALL_TIMES,
        cross_attention_timestep_skip_range=ALL_TIMES,
        current_timestep_callback=clock(target),
    )


def faster(target: Target) -> object:
    """FasterCache at the times of its defaults, since it needs two computed steps before them.

    Where guidance is not in one call, it is told that there is no half of a batch to skip.
    """
    return hooks.FasterCacheConfig(
        temporal_attention_block_skip_range=2,
        unconditional_batch_skip_range=2,
        attention_weight_callback=lambda _: 0.5,
        tensor_format=target.layout,
        is_guidance_distilled=not target.batched,
        current_timestep_callback=clock(target),
    )


def cache_dit(target: Target) -> str:
    """cache-dit's DBCache, which always runs the first block of a list."""
    rival = importlib.import_module("cache_dit")
    rival.enable_cache(
        target.pipe,
        cache_config=rival.DBCacheConfig(
            Fn_compute_blocks=1,
            Bn_compute_blocks=0,
            max_warmup_steps=1,
            residual_diff_threshold=ALWAYS,
        ),
    )
    return ""


def ours(target: Target) -> str:
    """Every second step, through `attach`."""
    attach(target.pipe, "skip_policy", every=2).__enter__()
    return ""


def trunk(target: Target) -> str:
    """Every second step of the block stack alone."""
    attach(target.pipe, "skip_policy", every=2, seam=Seam.TRUNK).__enter__()
    return ""


class Probing(Policy):
    """Looks at what the first block returns, and reuses every second step."""

    requires = frozenset({"signal:probe:1"})

    @hookimpl
    def decide(self, step: Step, call: Call) -> Decision:
        """One answer a step, whatever the probe holds."""
        call.feature("probe:1")
        return Reuse("every second") if step.index % 2 else Compute("every second")


def probe(target: Target) -> str:
    """Every second step, decided on the hidden states after the first block."""
    attach(target.pipe, [Probing()], seam=Seam.TRUNK).__enter__()
    return ""


class Alternating(Policy):
    """The first sample computes at even steps, the second at odd ones."""

    per_sample = True

    @hookimpl
    def decide(self, step: Step, call: Call) -> Decision:
        """A mask over the rows of the batch; branches that are batched lie one after another."""
        return Reuse(ALTERNATING, mask=[(step.index + row) % 2 == 1 for row in range(len(call.x))])


ALTERNATING = "every second"


def per_sample(target: Target) -> Callable[[], str]:
    """Two samples that never compute in the same step."""
    run = attach(target.pipe, [Alternating()])
    run.__enter__()

    def why() -> str:
        calls = run.traces[-1].calls() if run.traces else ()
        said = (
            call.reason.partition(f"{ALTERNATING} for part of the batch: ")[2] for call in calls
        )
        return next(filter(None, said), "")

    return why


METHODS: dict[str, Method] = {
    "erta skip_policy": Method(ours),
    "erta trunk seam": Method(trunk),
    "erta probe": Method(probe),
    "erta per sample": Method(per_sample, batch=2),
    "FirstBlockCache": on_networks(hooks.apply_first_block_cache, first_block),
    "MagCache": on_networks(hooks.apply_mag_cache, mag),
    "TaylorSeer": on_networks(hooks.apply_taylorseer_cache, taylor(lite=False)),
    "TaylorSeer lite": on_networks(hooks.apply_taylorseer_cache, taylor(lite=True)),
    "PyramidAttentionBroadcast": on_networks(hooks.apply_pyramid_attention_broadcast, pyramid),
    "FasterCache": on_networks(hooks.apply_faster_cache, faster),
    "cache-dit": Method(cache_dit, package="cache_dit"),
}
"""Every method by name, ours first: the whole network, its block stack, a probe, single samples."""
