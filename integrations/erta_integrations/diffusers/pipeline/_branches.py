"""Which guidance branch a network call belongs to: by name, else by what it is conditioned on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

MODES = (str, bool)  # tuples, because a union takes longer, and this runs at every call
SEQUENCES = (list, tuple)
CONDITIONING = re.compile(r"encoder_hidden_states|cap_feats|prompt|text|pooled|class_labels")


@dataclass(slots=True)
class Branches:
    """Names the calls of each step.

    A `cache_context` name is taken as it is, as long as the call's modes (words and switches) stay
    what they were at its first call. Without a name, a call is recognised by its conditioning: the
    same tensors (or equal ones) and the same plain options, such as a list of skipped layers or a
    mode, mean the same branch. The place within the step decides only among calls that have no
    conditioning. Parity is never used.

    The conditioning tensors of known branches are held until the request ends, so that an address
    cannot be mistaken for another tensor's.
    """

    known: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    shapes: dict[tuple[str, str], list[object]] = field(default_factory=dict)

    def begin_step(self) -> None:
        """A new step starts: every branch may be called again."""
        self.used.clear()

    def name(self, context: str | None, arguments: Mapping[str, Any]) -> tuple[str, bool]:
        """The branch of this call, unique within the step, and whether it looks like a repeat."""
        if context is None:
            signature = conditioning(arguments)
            name, repeated = self._recognised(signature)
        else:
            signature = modes(arguments)
            name, repeated = self._in_mode(context, signature), False
        base, repeat = name, 1
        while name in self.used:
            repeat += 1
            name = f"{base}#{repeat}"
        self.used.add(name)
        if name not in self.known:
            self.known[name] = signature
        return name, repeated or repeat > 1

    def of_shape(self, network: str, branch: str, shape: object) -> str:
        """The branch's name at one shape of latents; what is cached at another does not fit it."""
        known = self.shapes.get((network, branch))
        if known is None:
            known = self.shapes[network, branch] = [shape]
        if known[0] == shape:
            return branch
        if shape not in known:
            known.append(shape)
        return f"{branch}@{known.index(shape) + 1}"

    def clear(self) -> None:
        """Forget everything."""
        self.known.clear()
        self.used.clear()
        self.shapes.clear()

    def _in_mode(self, context: str, signature: Mapping[str, Any]) -> str:
        first = self.known.get(context, signature)
        if first == signature:
            return context
        changed = {k: v for k, v in signature.items() if first.get(k, v) != v}
        changed |= {k: None for k in first if k not in signature}
        changed |= {k: v for k, v in signature.items() if k not in first}
        return f"{context}({', '.join(f'{k}={v}' for k, v in sorted(changed.items()))})"

    def _recognised(self, signature: Mapping[str, Any]) -> tuple[str, bool]:
        for name, earlier in self.known.items():
            if name not in self.used and same_conditioning(earlier, signature):
                return name, False
        repeated = any(same_conditioning(self.known[name], signature) for name in self.used)
        return f"call{len(self.known)}" if signature else f"call{len(self.used)}", repeated


def conditioning(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that tell branches apart: conditioning tensors, words, switches, options."""
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            if conditions(name):
                found[name] = value
        elif value is None:
            continue
        elif isinstance(value, MODES):
            found[name] = value
        elif name == "skip_layers":
            found[name] = tuple(value) if isinstance(value, SEQUENCES) else value
        elif isinstance(value, SEQUENCES):
            if value and isinstance(value[0], Tensor) and conditions(name):
                found.update({f"{name}.{k}": item for k, item in enumerate(value)})
        elif isinstance(value, Mapping):
            nested = conditioning({f"{name}.{key}": item for key, item in value.items()})
            found.update({k: v for k, v in nested.items() if isinstance(v, Tensor)})
    return found


@lru_cache(maxsize=1024)
def conditions(name: str) -> bool:
    """Whether an argument of this name tells branches apart."""
    return CONDITIONING.search(name) is not None


def modes(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The words and switches of a call, such as whether it fills or reads a cache of its own."""
    return {name: value for name, value in arguments.items() if isinstance(value, MODES)}


def same_conditioning(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two calls are conditioned alike; values are compared only if storage differs."""
    if a.keys() != b.keys():
        return False
    for name, value in a.items():
        other = b[name]
        if value is not other and not same_value(value, other):
            return False
    return True


def same_value(a: Any, b: Any) -> bool:
    """Equal plain values, the same storage, or equal tensors."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return bool(a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b))
    if a is b:
        return True
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    return (a.data_ptr() == b.data_ptr() and a.stride() == b.stride()) or torch.equal(a, b)
