"""Notices that a network became another one during a request: adapters, attention, FreeU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from erta_integrations.diffusers.pipeline._fingerprint import read_adapter_scales

FREEU = ("s1", "s2", "b1", "b2")
"""Attributes that `enable_freeu` sets on the blocks of a UNet's second half."""
OWN = "diffusers.models."
"""Where the attention processors of diffusers live, which keep nothing of what they compute."""
PLAIN = (bool, int, float, str, Tensor)


class NetworkState:
    """What one network is now, as far as a few cheap facts tell.

    These are the list of adapters and the state of one adapted layer; the processor of every
    attention, with its plain settings, such as the scale of an IP-Adapter; and FreeU. Reading them
    costs 10 to 20 microseconds. Other changes of weights are not seen.

    Args:
        network: The network; a compiled one is looked into.

    Attributes:
        processors: The processor of each attention.
        foreign: The attentions whose processor is not one of diffusers' own, with that.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network._modules.get("_orig_mod") or network
        modules = list(self._network.modules())
        self.attentions = [module for module in modules if has_processor(module)]
        # a module looks up its attributes slowly, and these are read at every call
        self._places = [(vars(module), module._modules) for module in self.attentions]
        blocks = self._network._modules.get("up_blocks")
        self._blocks = [] if blocks is None else [vars(block) for block in blocks.children()]
        self._layer: nn.Module | None = None
        self._loaded: tuple[str, ...] = ()
        self._settings: list[tuple[dict[str, Any], tuple[str, ...]]] = []
        self.processors: list[Any] = []
        self.foreign: list[tuple[nn.Module, Any]] = []

    def read(self) -> tuple[object, ...]:
        """The facts; two readings are equal if nothing changed between them."""
        processors = [
            own["processor"] if "processor" in own else modules.get("processor")
            for own, modules in self._places
        ]
        if processors != self.processors:
            self.processors = processors
            self._settings = [found for one in processors if (found := find_settings(one))[1]]
            pairs = zip(self.attentions, processors, strict=True)
            self.foreign = [(attention, one) for attention, one in pairs if is_foreign(one)]
        return (
            processors,
            [[freeze(own.get(name)) for name in names] for own, names in self._settings],
            [block.get(name) for block in self._blocks for name in FREEU],
            self._read_adapters(),
        )

    def _read_adapters(self) -> tuple[object, ...]:
        adapters = vars(self._network).get("peft_config")  # a missing attribute is slow to ask for
        if not adapters:
            self._loaded, self._layer = (), None
            return ()
        loaded = tuple(adapters)
        if loaded != self._loaded or self._layer is None:  # none has one where all are disabled
            adapted = (m for m in self._network.modules() if read_adapter_scales(m))
            self._loaded, self._layer = loaded, next(adapted, None)
        layer = self._layer
        return loaded, read_adapter_scales(layer), tuple(getattr(layer, "merged_adapters", ()))


class NetworkWatch:
    """Names the networks of a request, by another name after each change from outside.

    What a network changes by itself while it runs is no change, such as a processor that counts
    its calls.
    """

    def __init__(self) -> None:
        self.states: dict[str, NetworkState] = {}
        self._known: dict[str, tuple[object, ...]] = {}
        self._changes: dict[str, int] = {}

    def name_model(self, name: str, network: nn.Module) -> str:
        """Name a network for this call: `transformer`, and `transformer#2` after a change."""
        state = self.states.get(name)
        if state is None:
            state = self.states[name] = NetworkState(network)
        now = state.read()
        before = self._known.setdefault(name, now)
        if before != now:
            self._changes[name] = self._changes.get(name, 1) + 1
            self._known[name] = now
        changes = self._changes.get(name)
        return name if changes is None else f"{name}#{changes}"

    def settle(self, name: str) -> None:
        """Take what a network is after it ran for what it is."""
        self._known[name] = self.states[name].read()


def has_processor(module: nn.Module) -> bool:
    """Whether a module is an attention, whose processor can be exchanged."""
    return "processor" in vars(module) or "processor" in module._modules


def is_foreign(processor: Any) -> bool:
    """Whether an attention processor is not one of diffusers' own."""
    return processor is not None and not type(processor).__module__.startswith(OWN)


def find_settings(processor: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The attributes of a processor, and the names of those that hold plain settings."""
    own = getattr(processor, "__dict__", {})
    return own, tuple(name for name, value in own.items() if name[:1] != "_" and is_plain(value))


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a text or a tensor, or holds nothing else."""
    if isinstance(value, Mapping):
        return all(map(is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, PLAIN)


def freeze(value: Any) -> object:
    """A plain value as it is now, to be compared later."""
    if isinstance(value, Tensor):
        return Held(value)
    if isinstance(value, Mapping):
        return tuple((key, freeze(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(freeze, value))
    return value


class Held:
    """An object as it is now; equal to another if both are the same, and not written in place.

    It is held, so that no other can get its address meanwhile.
    """

    __slots__ = ("value", "version")

    def __init__(self, value: object) -> None:
        self.value = value
        self.version = get_version(value) if isinstance(value, Tensor) else 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Held):
            return NotImplemented
        return self.value is other.value and self.version == other.version

    __hash__ = None  # type: ignore[assignment]


def get_version(tensor: Tensor) -> int:
    """How often a tensor was written in place; 0 where torch does not count it."""
    return 0 if tensor.is_inference() else tensor._version
