"""What is known of a pipeline before its first request, for whoever chooses policies for it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from erta_framework.errors import CapabilityError
from erta_framework.plugins import Choice, NetworkFacts, PipelineFacts, load_chooser
from erta_integrations.diffusers.network import find_networks
from erta_integrations.diffusers.trunk import discover, find_trunk_signals


def choose_policies(facts: PipelineFacts, budget: Mapping[str, Any]) -> Choice:
    """The policies for a pipeline and a budget, or for neither in particular.

    Raises:
        CapabilityError: Nothing is chosen for such a model.
        PolicyError: The budget needs a profile, or is none.
    """
    return load_chooser()(facts, budget)


def choose_again(
    facts: PipelineFacts, seam: str, num_steps: int | None, budget: Mapping[str, Any]
) -> Choice:
    """The choice for a request of so many steps, at the seam that the pipeline is attached at."""
    steps = facts.num_steps if num_steps is None else num_steps
    return choose_policies(replace(facts, seam=seam, num_steps=steps), budget)


def describe_pipeline(
    pipe: Any, networks: Sequence[str] | None = None, seam: str | None = None
) -> PipelineFacts:
    """What is known of a pipeline: classes, configurations and names.

    Raises:
        CapabilityError: It has no denoising network.
    """
    found = find_networks(pipe, networks)
    config = read_config(pipe)
    held = [config, *(read_config(getattr(n, "_orig_mod", n)) for n in found.values())]
    names = [getattr(pipe, "name_or_path", None), *(each.get("_name_or_path") for each in held)]
    return PipelineFacts(
        pipeline=type(pipe).__name__,
        networks={name: describe_network(network) for name, network in found.items()},
        names=tuple(dict.fromkeys(str(name) for name in names if name)),
        scheduler=type(getattr(pipe, "scheduler", None)).__name__,
        num_steps=read_default_steps(pipe),
        seam=seam,
        distilled=bool(config.get("is_distilled", False)),
    )


def describe_network(network: nn.Module) -> NetworkFacts:
    """What is known of one network."""
    inner = getattr(network, "_orig_mod", network)
    try:
        signals, seams = find_trunk_signals(network, discover(network)), {"latent", "trunk"}
    except CapabilityError:
        signals, seams = frozenset(), {"latent"}
    return NetworkFacts(
        kind=type(inner).__name__,
        config=read_config(inner),
        seams=frozenset(seams),
        signals=signals,
        adapters=tuple(map(str, getattr(inner, "peft_config", None) or ())),
    )


def read_config(part: Any) -> Mapping[str, Any]:
    """The configuration of a pipeline or network; empty where it has none."""
    config = getattr(part, "config", None)
    return dict(config) if isinstance(config, Mapping) else {}


def read_default_steps(pipe: Any) -> int | None:
    """The steps of a request that does not say how many; None where that is not known."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    default = getattr(parameters.get("num_inference_steps"), "default", None)
    return default if isinstance(default, int) else None
