"""Networks that are distilled for guidance, and the refusal of policies that need its branches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from erta_framework import Policy
from erta_framework.errors import CapabilityError
from erta_framework.session import TWO_BRANCHES


def is_distilled(network: nn.Module) -> bool:
    """Whether a network takes the guidance scale as an input, and so needs no second branch."""
    config = getattr(getattr(network, "_orig_mod", network), "config", None)
    return bool(getattr(config, "guidance_embeds", False))


def find_guidance_capabilities(networks: Mapping[str, nn.Module]) -> frozenset[str]:
    """Whether guidance evaluates these networks with and without the prompt."""
    distilled = any(is_distilled(network) for network in networks.values())
    return frozenset() if distilled else frozenset({TWO_BRANCHES})


def check_guidance(policies: Sequence[Policy], networks: Mapping[str, nn.Module]) -> None:
    """Refuse policies that need two guidance branches, if a network is distilled for guidance.

    Raises:
        CapabilityError: Names the policy and the network.
    """
    for policy in policies:
        if TWO_BRANCHES not in policy.traits.requires:
            continue
        for name, network in networks.items():
            if is_distilled(network):
                raise CapabilityError(
                    f"{policy!r} leaves out one of two guidance branches, but {name} "
                    f"({type(network).__name__}) is distilled for guidance (guidance_embeds): it "
                    "is evaluated once a step; remove the policy, or set its true_cfg if you give "
                    "the pipeline a negative prompt all the same"
                )
