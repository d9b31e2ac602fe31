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

from erta_bench.other_caches import RIVALS, Target
from erta_framework import Call, Compute, Decision, Policy, Reuse, Seam, Step, Traits, hookimpl
from erta_integrations.diffusers import attach

ALWAYS = 1e6
"""A threshold that no step reaches."""
ALL_TIMES = (-1, 1001)
"""A range of timesteps that holds all of them."""


@dataclass(frozen=True, slots=True)
class FamilyMethod:
    """One cache.

    Attributes:
        enable: Switches it on for the rest of the process, for a run of so many steps; returns
            what a user has to add by hand, or a function that says after the run why nothing was
            skipped.
        package: What has to be installed for it.
        batch: Samples a run.
    """

    enable: Callable[[Target, int], str | Callable[[], str]]
    package: str = "diffusers"
    batch: int = 1

    @property
    def installed(self) -> bool:
        """Whether its package can be imported."""
        return find_spec(self.package) is not None


def make_rival_method(name: str, settings: Callable[[int], Mapping[str, Any]]) -> FamilyMethod:
    """A cache of another project, with settings for a number of steps."""
    found = RIVALS[name]
    return FamilyMethod(lambda target, steps: found.enable(target, settings(steps)), found.package)


def make_mag_settings(steps: int) -> dict[str, Any]:
    """Ratios of one, which is what its calibration would have to find."""
    return {"threshold": ALWAYS, "max_skip_steps": 2, "mag_ratios": torch.ones(steps)}


def make_taylor_method(lite: bool) -> FamilyMethod:
    """TaylorSeer on the modules it finds by itself, or only on the last projection."""
    settings = {
        "cache_interval": 2,
        "disable_cache_before_step": 2,
        "taylor_factors_dtype": torch.float32,
        "use_lite_mode": lite,
    }
    return make_rival_method("TaylorSeer", lambda _: settings)


def make_pyramid_settings(_: int) -> dict[str, Any]:
    """Every kind of attention, at all times."""
    kinds = ("spatial", "temporal", "cross")
    ranges: dict[str, Any] = {f"{kind}_attention_block_skip_range": 2 for kind in kinds}
    return ranges | {f"{kind}_attention_timestep_skip_range": ALL_TIMES for kind in kinds}


def make_faster_settings(_: int) -> dict[str, Any]:
    """FasterCache at the times of its defaults, since it needs two computed steps before them."""
    return {
        "temporal_attention_block_skip_range": 2,
        "unconditional_batch_skip_range": 2,
        "attention_weight_callback": lambda _: 0.5,
    }


def make_cache_dit_settings(_: int) -> dict[str, Any]:
    """DBCache, which always runs the first block of a list."""
    return {
        "Fn_compute_blocks": 1,
        "Bn_compute_blocks": 0,
        "max_warmup_steps": 1,
        "residual_diff_threshold": ALWAYS,
    }


def enable_at_latents(target: Target, _: int) -> str:
    """Reuse every second step of the whole network."""
    attach(target.pipe, "skip_policy", every=2).__enter__()
    return ""


def enable_at_trunk(target: Target, _: int) -> str:
    """Reuse every second step of the block stack."""
    attach(target.pipe, "skip_policy", every=2, seam=Seam.TRUNK).__enter__()
    return ""


class Probing(Policy):
    """Looks at what the first block returns, and reuses every second step."""

    traits = Traits(requires=frozenset({"signal:probe:1"}))

    @hookimpl
    def decide(self, step: Step, call: Call) -> Decision:
        """The same answer whatever the probe holds."""
        call.feature("probe:1")
        return Reuse("every second") if step.index % 2 else Compute("every second")


def enable_probe(target: Target, _: int) -> str:
    """Reuse every second step, decided on the hidden states after the first block."""
    attach(target.pipe, [Probing()], seam=Seam.TRUNK).__enter__()
    return ""


class Alternating(Policy):
    """The first sample computes at even steps, the second at odd ones."""

    traits = Traits(decides="sample")

    @hookimpl
    def decide(self, step: Step, call: Call) -> Decision:
        """A mask over the rows of the batch; branches that are batched lie one after another."""
        return Reuse(ALTERNATING, mask=[(step.index + row) % 2 == 1 for row in range(len(call.x))])


ALTERNATING = "every second"


def enable_per_sample(target: Target, _: int) -> Callable[[], str]:
    """Two samples that compute at different steps."""
    run = attach(target.pipe, [Alternating()])
    run.__enter__()

    def explain() -> str:
        calls = run.traces[-1].calls() if run.traces else ()
        said = (
            call.reason.partition(f"{ALTERNATING} for part of the batch: ")[2] for call in calls
        )
        return next(filter(None, said), "")

    return explain


METHODS: dict[str, FamilyMethod] = {
    "erta skip_policy": FamilyMethod(enable_at_latents),
    "erta trunk seam": FamilyMethod(enable_at_trunk),
    "erta probe": FamilyMethod(enable_probe),
    "erta per sample": FamilyMethod(enable_per_sample, batch=2),
    "FirstBlockCache": make_rival_method("FirstBlockCache", lambda _: {"threshold": ALWAYS}),
    "MagCache": make_rival_method("MagCache", make_mag_settings),
    "TaylorSeer": make_taylor_method(lite=False),
    "TaylorSeer lite": make_taylor_method(lite=True),
    "PyramidAttentionBroadcast": make_rival_method(
        "PyramidAttentionBroadcast", make_pyramid_settings
    ),
    "FasterCache": make_rival_method("FasterCache", make_faster_settings),
    "cache-dit": make_rival_method("cache-dit", make_cache_dit_settings),
}
"""Every method by name, ours first: the whole network, its block stack, a probe, single samples."""
