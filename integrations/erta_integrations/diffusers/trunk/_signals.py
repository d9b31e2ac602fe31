"""Signals inside a network that policies may ask for by name, such as `signal:modulated_input`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from erta_framework import Policy
from erta_framework.errors import CapabilityError
from erta_framework.session import PREFIX, PROMPT, PROMPT_MASK, TEXT, as_tokens, find_text_tokens
from erta_integrations.diffusers.network import pick, signature, signature_of

MODULATED = "modulated_input"
TIME = "timestep_embedding"
PROJECTION = "timestep_projection"
PROBE = "probe:"
LATENTS = "latents"
"""Not among what is required: a policy says that it `reads_latents`."""
EMBEDDINGS = "encoder_hidden_states"
MASKS = ("encoder_attention_mask", "encoder_hidden_states_mask")

Feature = Callable[[], Tensor]


class _Seen(Exception):
    """Carries what the attention of a block was given; never leaves this module."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def attention_of(block: nn.Module) -> nn.Module | None:
    """The first attention module inside a block, which its modulated input goes into."""
    for module in block.modules():
        name = type(module).__name__
        if module is not block and ("Attention" in name or "Attn" in name) and uses(module):
            return module
    return None


def uses(module: nn.Module) -> bool:
    """Whether a module's `forward` takes hidden states first."""
    first = next(iter(signature_of(type(module).forward).parameters), "")
    return first in ("hidden_states", "x")


def time_embedding_of(network: nn.Module) -> nn.Module | None:
    """The module that embeds the timestep: the first `TimestepEmbedding`, of the outermost ones.

    Parts of a network may have one of their own, as the text refiner of HunyuanVideo does.
    """
    found = (n for n, m in network.named_modules() if type(m).__name__ == "TimestepEmbedding")
    name = min(found, key=lambda path: path.count("."), default=None)
    return None if name is None else network.get_submodule(name)


def time_projection_of(network: nn.Module) -> nn.Module | None:
    """The linear layer that projects the embedded timestep for all blocks, as Wan has one."""
    found = (m for name, m in network.named_modules() if name.split(".")[-1] == "time_proj")
    return next((m for m in found if isinstance(m, nn.Linear)), None)


def time_waves_of(network: nn.Module) -> nn.Module | None:
    """The module that makes sinusoids of the timestep: the first `Timesteps`."""
    found = (m for m in network.modules() if type(m).__name__ == "Timesteps")
    return next(found, None)


def activation_beside(network: nn.Module, layer: nn.Module | None) -> nn.Module | None:
    """The activation that goes before a layer, kept as `act_fn` beside it."""
    owners = (m for m in network.modules() if any(part is layer for part in m.children()))
    found = getattr(next(owners, None), "act_fn", None)
    return found if isinstance(found, nn.Module) else None


def modulated_input(block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """What the attention of `block` would be given: its normalized, modulated input `[B, N, C]`.

    Runs the block up to its first attention, no further.

    Raises:
        CapabilityError: The block never called that attention.
    """
    attention = attention_of(block)
    if attention is not None:

        def seen(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            raise _Seen(pick(named, ("hidden_states", "x")) if not given else given[0])

        handle = attention.register_forward_pre_hook(seen, with_kwargs=True, prepend=True)
        try:
            type(block).forward(block, *args, **kwargs)
        except _Seen as found:
            return found.tensor
        finally:
            handle.remove()
    raise CapabilityError(f"{type(block).__name__} never ran its attention; no modulated input")


def depth_of(name: str) -> int:
    """The number of blocks that a probe runs: 3 for `signal:probe:3`, 0 for other signals."""
    digits = name.removeprefix(PREFIX).removeprefix(PROBE)
    return int(digits) if name.startswith(PREFIX + PROBE) and digits.isdecimal() else 0


def depths_of(names: Iterable[str]) -> frozenset[int]:
    """The depths of the probes among these signals."""
    return frozenset(depth_of(name) for name in names) - {0}


def listed(names: Iterable[str]) -> str:
    """Signals for people, without prefix; probes as a range."""
    probes = sorted(depths_of(names))
    found = sorted(name.removeprefix(PREFIX) for name in names if not depth_of(name))
    if probes and probes == [*range(1, len(probes) + 1)] and len(probes) > 2:
        found.append(f"{PROBE}1 to {PROBE}{probes[-1]}")
    else:
        found += [f"{PROBE}{depth}" for depth in probes]
    return ", ".join(found) or "none"


def available(network: nn.Module, first_blocks: Sequence[nn.Module], blocks: int) -> frozenset[str]:
    """Names of the signals that this network offers at the trunk seam, with their prefix.

    Args:
        network: The network.
        first_blocks: The first block of each list.
        blocks: How many blocks the trunk has at least; a probe leaves at least one of them.
    """
    found = {f"{PREFIX}{PROBE}{depth}" for depth in range(1, blocks)}
    if first_blocks and all(attention_of(block) is not None for block in first_blocks):
        found.add(PREFIX + MODULATED)
    if time_embedding_of(network) is not None:
        found.add(PREFIX + TIME)
    if time_projection_of(network) is not None:
        found.add(PREFIX + PROJECTION)
    return frozenset(found)


def of_text(networks: Iterable[nn.Module]) -> frozenset[str]:
    """The signals of the text, with their prefix, where every network takes text embeddings."""
    takes = all(EMBEDDINGS in signature(network).parameters for network in networks)
    return TEXT if takes else frozenset()


def text_features(network: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Feature]:
    """What policies may ask for of the text in one network call, read off its arguments."""

    def embeddings() -> Tensor:
        given = arguments.get(EMBEDDINGS)
        if not isinstance(given, Tensor) or given.ndim < 2:
            got = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise CapabilityError(
                f"{type(network).__name__} was given {got} as {EMBEDDINGS}, not text embeddings "
                "[B, tokens, D]; remove the policy that reads signal:prompt"
            )
        return as_tokens(given)

    def mask() -> Tensor:
        given = pick(arguments, MASKS)
        fits = isinstance(given, Tensor) and given.shape == embeddings().shape[:2]
        return find_text_tokens(embeddings(), given if fits else None)

    return {PROMPT: embeddings, PROMPT_MASK: mask}


def check(
    policies: Sequence[Policy], networks: Mapping[str, nn.Module], offered: frozenset[str]
) -> None:
    """Refuse a pipeline that lacks a signal.

    Raises:
        CapabilityError: Names the policy, the signal, the model class and what it offers.
    """
    for policy in policies:
        asked = {name for name in policy.traits.requires if name.startswith(PREFIX)}
        missing = sorted(asked - offered)
        if missing:
            models = ", ".join(f"{n} ({type(m).__name__})" for n, m in networks.items())
            raise CapabilityError(
                f"{policy!r} requires {', '.join(missing)}, which {models} does not offer (it "
                f"offers {listed(offered)}); signals need seam='trunk' and a network that has "
                "them, see inspect(pipe)"
            )
