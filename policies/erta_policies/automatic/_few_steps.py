"""Models that make only a few steps, for which nothing is chosen."""

from __future__ import annotations

import re
from collections.abc import Iterator

from erta_framework.errors import CapabilityError
from erta_framework.plugins import PipelineFacts
from erta_policies.automatic._models import normalise

LEAST = 10
"""Fewest steps for which something is chosen. With fewer, neighbouring steps differ too much."""
NAMES = re.compile(
    r"turbo|lightning|schnell|hyper-?sd|\blcm\b|latent-?consistency|sprint|distill|dmd2?\b|causvid|"
    r"lightx2v|fastwan|fast-?hunyuan|meanflow|few-?step|\b[1248]-?steps?\b"
)
"""What names of models and adapters that make a few steps hold."""
SCHEDULERS = (
    "LCMScheduler",
    "TCDScheduler",
    "FlowMatchLCMScheduler",
    "CMStochasticIterativeScheduler",
)
REMEDY = (
    "reuse costs more there than it saves; name a policy if you want to try it all the same: "
    'erta.enable(pipe, "<policy>")'
)


def refuse_few_steps(facts: PipelineFacts) -> None:
    """Refuse a pipeline whose model was distilled to a few steps, and a run of only a few.

    Raises:
        CapabilityError: Says what shows it.
    """
    if facts.num_steps is not None and facts.num_steps < LEAST:
        raise CapabilityError(
            f"{facts.num_steps} steps of {facts.pipeline} are too few, and nothing is chosen for "
            f"fewer than {LEAST}: {REMEDY}"
        )
    for sign in find_signs(facts):
        raise CapabilityError(
            f"{facts.pipeline} makes only a few steps, as {sign} shows, and nothing is chosen for "
            f"such a model: {REMEDY}"
        )


def find_signs(facts: PipelineFacts) -> Iterator[str]:
    """What shows that a model makes only a few steps, in words."""
    for name in facts.names:
        if found := NAMES.search(normalise(name)):
            yield f"{found.group()!r} in the name {name!r}"
    for component, network in facts.networks.items():
        for adapter in network.adapters:
            if found := NAMES.search(normalise(adapter)):
                yield f"{found.group()!r} in the adapter {adapter!r} of {component}"
        if network.kind == "FluxTransformer2DModel" and is_schnell(network.config):
            yield f"{component} without guidance_embeds, which is FLUX.1-schnell's configuration,"
    if facts.distilled:
        yield "is_distilled in its configuration"
    if facts.scheduler in SCHEDULERS:
        yield f"its {facts.scheduler}"
    if found := re.search(r"Turbo|Lightning|Sprint|LatentConsistency", facts.pipeline):
        yield f"{found.group()!r} in its class"


def is_schnell(config: object) -> bool:
    """Whether a configuration of FLUX.1 is that of the distilled model."""
    assert hasattr(config, "get")
    return config.get("num_layers") == 19 and config.get("guidance_embeds") is False
