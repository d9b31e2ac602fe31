"""Signals inside a network that policies may ask for by name, such as `signal:modulated_input`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from erta_framework import Policy
from erta_framework.errors import CapabilityError
from erta_framework.session import PREFIX, PROMPT, PROMPT_MASK, TEXT, as_tokens, find_text_tokens
from erta_integrations.diffusers.network import first_of, get_network_signature, get_signature
from erta_integrations.diffusers.trunk._discovery import Block

MODULATED = "modulated_input"
TIME = "timestep_embedding"
PROJECTION = "timestep_projection"
PROBE = "probe:"
LATENTS = "latents"
"""Not among what policies require: a policy declares that it `reads_latents`."""
EMBEDDINGS = "encoder_hidden_states"
MASKS = ("encoder_attention_mask", "encoder_hidden_states_mask")

Feature = Callable[[], Tensor]
"""Computes a signal when a policy asks for it."""


# ------------------------------------------------------------------- what is offered
def find_trunk_signals(network: nn.Module, stacks: Mapping[str, Sequence[Block]]) -> frozenset[str]:
    """Find the signals that a network offers at the trunk seam, with their prefix.

    Args:
        network: The network.
        stacks: Its lists of blocks. The trunk is at least as long as the longest list, and a probe
            leaves at least one block of it.
    """
    longest = max(map(len, stacks.values()))
    found = {f"{PREFIX}{PROBE}{depth}" for depth in range(1, longest)}
    # the trunk begins with the first block of one of the lists
    if all(find_attention(blocks[0].module) is not None for blocks in stacks.values()):
        found.add(PREFIX + MODULATED)
    if find_time_embedding(network) is not None:
        found.add(PREFIX + TIME)
    if find_time_projection(network) is not None:
        found.add(PREFIX + PROJECTION)
    return frozenset(found)


def find_text_signals(networks: Iterable[nn.Module]) -> frozenset[str]:
    """Find the signals of the text, with their prefix; every network must take text embeddings."""
    takes = all(EMBEDDINGS in get_network_signature(network).parameters for network in networks)
    return TEXT if takes else frozenset()


def check_signals(
    policies: Sequence[Policy], networks: Mapping[str, nn.Module], offered: frozenset[str]
) -> None:
    """Refuse policies that require a signal that is not offered.

    Raises:
        CapabilityError: Names the policy, the signal, the network class and what it offers.
    """
    for policy in policies:
        required = {name for name in policy.traits.requires if name.startswith(PREFIX)}
        missing = sorted(required - offered)
        if missing:
            models = ", ".join(f"{n} ({type(m).__name__})" for n, m in networks.items())
            raise CapabilityError(
                f"{policy!r} requires {', '.join(missing)}, which {models} does not offer (it "
                f"offers {format_signals(offered)}); signals need seam='trunk' and a network that "
                "has them, see inspect(pipe)"
            )


# ------------------------------------------------------------------ names of signals
def parse_depth(name: str) -> int:
    """The number of blocks that a probe runs: 3 for `signal:probe:3`, 0 for other signals."""
    digits = name.removeprefix(PREFIX).removeprefix(PROBE)
    return int(digits) if name.startswith(PREFIX + PROBE) and digits.isdecimal() else 0


def parse_depths(names: Iterable[str]) -> frozenset[int]:
    """The depths of the probes among these signals."""
    return frozenset(parse_depth(name) for name in names) - {0}


def format_signals(names: Iterable[str]) -> str:
    """Signals for people: without prefix, and with probes as a range."""
    probes = sorted(parse_depths(names))
    found = sorted(name.removeprefix(PREFIX) for name in names if not parse_depth(name))
    if probes and probes == [*range(1, len(probes) + 1)] and len(probes) > 2:
        found.append(f"{PROBE}1 to {PROBE}{probes[-1]}")
    else:
        found += [f"{PROBE}{depth}" for depth in probes]
    return ", ".join(found) or "none"


# ------------------------------------------------------------ signals of the text
def read_text_signals(network: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Feature]:
    """The signals of the text of one network call, read from its arguments when asked for."""

    def embeddings() -> Tensor:
        value = arguments.get(EMBEDDINGS)
        if not isinstance(value, Tensor) or value.ndim < 2:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise CapabilityError(
                f"{type(network).__name__} was given {got} as {EMBEDDINGS}, not text embeddings "
                "[B, tokens, D]; remove the policy that reads signal:prompt"
            )
        return as_tokens(value)

    def mask() -> Tensor:
        value = first_of(arguments, MASKS)
        fits = isinstance(value, Tensor) and value.shape == embeddings().shape[:2]
        return find_text_tokens(embeddings(), value if fits else None)

    return {PROMPT: embeddings, PROMPT_MASK: mask}


# ---------------------------------------------------------------- the modulated input
class _Seen(Exception):
    """Carries the input of a block's attention; never leaves this module."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def compute_modulated_input(
    block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Tensor:
    """The normalised, modulated input of the first attention of `block`, `[B, N, C]`.

    Runs the block up to that attention, no further.

    Raises:
        CapabilityError: The block never called it.
    """
    attention = find_attention(block)
    if attention is not None:

        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Seen(args[0] if args else first_of(kwargs, ("hidden_states", "x")))

        handle = attention.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
        try:
            type(block).forward(block, *args, **kwargs)
        except _Seen as found:
            return found.tensor
        finally:
            handle.remove()
    raise CapabilityError(f"{type(block).__name__} never ran its attention; no modulated input")


def find_attention(block: nn.Module) -> nn.Module | None:
    """Find the first attention inside a block, which takes its modulated input."""
    for module in block.modules():
        name = type(module).__name__
        known = "Attention" in name or "Attn" in name
        if module is not block and known and takes_hidden_states(module):
            return module
    return None


def takes_hidden_states(module: nn.Module) -> bool:
    """Whether a module's `forward` takes hidden states first."""
    first = next(iter(get_signature(type(module).forward).parameters), "")
    return first in ("hidden_states", "x")


# ----------------------------------------------------- modules that embed the timestep
def find_time_embedding(network: nn.Module) -> nn.Module | None:
    """Find the module that embeds the timestep: the outermost `TimestepEmbedding`.

    Parts of a network may have one of their own, as the text refiner of HunyuanVideo does.
    """
    found = (n for n, m in network.named_modules() if type(m).__name__ == "TimestepEmbedding")
    name = min(found, key=lambda path: path.count("."), default=None)
    return None if name is None else network.get_submodule(name)


def find_time_projection(network: nn.Module) -> nn.Module | None:
    """Find the linear layer that projects the embedded timestep for all blocks, as Wan has one."""
    found = (m for name, m in network.named_modules() if name.split(".")[-1] == "time_proj")
    return next((m for m in found if isinstance(m, nn.Linear)), None)


def find_sinusoids(network: nn.Module) -> nn.Module | None:
    """Find the module that makes sinusoids of the timestep: the first `Timesteps`."""
    found = (m for m in network.modules() if type(m).__name__ == "Timesteps")
    return next(found, None)


def find_activation(network: nn.Module, layer: nn.Module | None) -> nn.Module | None:
    """Find the activation before a layer, which its owner keeps as `act_fn`."""
    owners = (m for m in network.modules() if any(part is layer for part in m.children()))
    found = getattr(next(owners, None), "act_fn", None)
    return found if isinstance(found, nn.Module) else None
