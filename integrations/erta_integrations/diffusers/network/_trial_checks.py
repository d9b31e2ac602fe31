"""What trials of a network can do, and the refusal of policies that need more."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import nn

from erta_framework import Policy
from erta_framework.errors import CapabilityError
from erta_framework.session import PLANNED, RESIZED, TRIAL
from erta_integrations.diffusers.network._arguments import get_network_signature

POSITIONS = re.compile(
    r"(^|_)img_(ids|sizes|shapes)$|position_ids$|rotary|rope_pos$|^video_coords$|^indices_"
    r"|^(num_frames|height|width)$"
)
"""Arguments that hold token positions or latent sizes, which only the pipeline can make."""


def find_trial_capabilities(networks: Mapping[str, nn.Module]) -> frozenset[str]:
    """What trials of these networks can do, at the latent seam."""
    fixed = any(find_position_argument(network) for network in networks.values())
    return frozenset({TRIAL, PLANNED} if fixed else {TRIAL, PLANNED, RESIZED})


def check_trials(policies: Sequence[Policy], networks: Mapping[str, nn.Module]) -> None:
    """Refuse policies that try latents of another size, if a network cannot take such.

    Raises:
        CapabilityError: Names the policy, the network and the argument that prevents it.
    """
    for policy in policies:
        if RESIZED not in policy.traits.requires:
            continue
        for name, network in networks.items():
            argument = find_position_argument(network)
            if argument:
                raise CapabilityError(
                    f"{policy!r} runs {name} ({type(network).__name__}) on smaller latents, but "
                    f"this network takes the positions of its tokens in {argument}, which only the "
                    "pipeline can make; use a policy without such trials, such as easycache"
                )


def find_position_argument(network: nn.Module) -> str:
    """The argument in which a network takes positions or sizes; empty if there is none."""
    names = get_network_signature(network).parameters
    return next((name for name in names if POSITIONS.search(name)), "")
