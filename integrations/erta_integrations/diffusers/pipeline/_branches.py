"""Finds the guidance branch of a network call: by its name, else by its conditioning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from erta_integrations.diffusers.pipeline._network_state import get_version

MODES = (str, bool)  # tuples, because `isinstance` with a union is slower: this runs every call
SEQUENCES = (list, tuple)
CONDITIONING = re.compile(r"encoder_hidden_states|cap_feats|prompt|text|pooled|class_labels")


@dataclass(slots=True)
class Branches:
    """Names the branch of each network call.

    A name that the pipeline sets through `cache_context` is taken, with the call's modes (its
    strings and booleans) added if they differ from those of its first call. Without a name, calls
    with the same conditioning belong to the same branch: the same or equal tensors, and the same
    plain options, such as a list of skipped layers. The order within the step decides only between
    calls that have no conditioning. Counting calls, even and odd, never decides.

    Conditioning that was written in place since counts as another, and so does what replaces that
    of a named branch: `cond~2` has a history of its own.

    The conditioning tensors of known branches are held until the request ends. Otherwise another
    tensor could get the same address and be taken for one of them.

    Attributes:
        known: The conditioning of each branch; of a named one its modes.
        prompts: The conditioning of each branch as it was last given.
        used: Branches that were called in this step.
        shapes: The shapes of latents that each network had in each branch.
    """

    known: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    prompts: dict[str, Prompt] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    shapes: dict[tuple[str, str], list[object]] = field(default_factory=dict)

    def begin_step(self) -> None:
        """Begin a step: every branch may be called again."""
        self.used.clear()

    def name(self, context: str | None, arguments: Mapping[str, Any]) -> tuple[str, bool]:
        """Name the branch of a call, unique within the step, and say if it looks like a repeat."""
        conditioning = signature = find_conditioning(arguments)
        if context is None:
            name, repeated = self._recognise(signature)
        else:
            signature = find_modes(arguments)
            name, repeated = self._add_modes(context, signature), False
        base, repeat = name, 1
        while name in self.used:
            repeat += 1
            name = f"{base}#{repeat}"
        self.used.add(name)
        if name not in self.known:
            self.known[name] = signature
        prompt = self.prompts.get(name)
        if prompt is None:
            prompt = self.prompts[name] = Prompt(conditioning)
        elif context is not None:
            prompt.update(conditioning)
        return prompt.rename(name), repeated or repeat > 1

    def name_shape(self, network: str, branch: str, shape: object) -> str:
        """Name a branch at one shape of latents: a residual of another shape does not fit it."""
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
        self.prompts.clear()
        self.used.clear()
        self.shapes.clear()

    def _add_modes(self, context: str, signature: Mapping[str, Any]) -> str:
        first = self.known.get(context, signature)
        if first == signature:
            return context
        changed = {k: v for k, v in signature.items() if first.get(k, v) != v}
        changed |= {k: None for k in first if k not in signature}
        changed |= {k: v for k, v in signature.items() if k not in first}
        return f"{context}({', '.join(f'{k}={v}' for k, v in sorted(changed.items()))})"

    def _recognise(self, signature: Mapping[str, Any]) -> tuple[str, bool]:
        for name, earlier in self.known.items():
            if name not in self.used and self._is_known(name, earlier, signature):
                return name, False
        repeated = any(self._is_known(name, self.known[name], signature) for name in self.used)
        return f"call{len(self.known)}" if signature else f"call{len(self.used)}", repeated

    def _is_known(
        self, name: str, earlier: Mapping[str, Any], signature: Mapping[str, Any]
    ) -> bool:
        """Whether this is the conditioning of a branch, which nobody wrote into since."""
        same = has_same_conditioning(earlier, signature)
        return same and not self.prompts[name].was_written(signature)


class Prompt:
    """The conditioning of one branch, and how often it was exchanged for another.

    Values are compared only where other tensors are given. Equal ones show a pipeline that makes
    them anew for every call; its values are not read again, because that waits for the device.
    """

    __slots__ = ("changes", "given", "made_anew", "versions")

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.changes, self.made_anew = 1, False
        self._keep(given)

    def update(self, given: Mapping[str, Any]) -> None:
        """Take what the branch is given now, and count it if it is another."""
        if self.made_anew:
            return
        if has_same_storage(self.given, given):
            self.changes += self.was_written(given)
        elif has_same_conditioning(find_tensors(self.given), find_tensors(given)):
            self.made_anew = True
        else:
            self.changes += 1
        self._keep(given)

    def was_written(self, given: Mapping[str, Any]) -> bool:
        """Whether a tensor that is given again was written in place since."""
        return any(
            self.versions.get(name, version) != version
            for name, version in read_versions(given).items()
            if is_same_storage(self.given[name], given[name])
        )

    def rename(self, branch: str) -> str:
        """The name of the branch with this conditioning: `cond~2` after a change."""
        return branch if self.changes == 1 else f"{branch}~{self.changes}"

    def _keep(self, given: Mapping[str, Any]) -> None:
        self.given, self.versions = given, read_versions(given)


def read_versions(conditioning: Mapping[str, Any]) -> dict[str, int]:
    """How often each tensor of a conditioning was written in place."""
    return {name: get_version(value) for name, value in find_tensors(conditioning).items()}


def find_tensors(conditioning: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a conditioning, without its modes."""
    return {name: value for name, value in conditioning.items() if isinstance(value, Tensor)}


def has_same_storage(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two calls were given the same tensors."""
    before, now = find_tensors(a), find_tensors(b)
    return before.keys() == now.keys() and all(
        is_same_storage(before[name], value) for name, value in now.items()
    )


def is_same_storage(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one and the same memory."""
    return a is b or (
        a.shape == b.shape
        and a.dtype == b.dtype
        and a.device == b.device
        and a.data_ptr() == b.data_ptr()
        and a.stride() == b.stride()
    )


def find_conditioning(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Find the arguments that distinguish branches: conditioning tensors, modes and options."""
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            if is_conditioning(name):
                found[name] = value
        elif value is None:
            continue
        elif isinstance(value, MODES):
            found[name] = value
        elif name == "skip_layers":
            found[name] = tuple(value) if isinstance(value, SEQUENCES) else value
        elif isinstance(value, SEQUENCES):
            if value and isinstance(value[0], Tensor) and is_conditioning(name):
                found.update({f"{name}.{k}": item for k, item in enumerate(value)})
        elif isinstance(value, Mapping):
            nested = find_conditioning({f"{name}.{key}": item for key, item in value.items()})
            found.update({k: v for k, v in nested.items() if isinstance(v, Tensor)})
    return found


@lru_cache(maxsize=1024)
def is_conditioning(name: str) -> bool:
    """Whether an argument of this name distinguishes branches."""
    return CONDITIONING.search(name) is not None


def find_modes(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Find the strings and booleans of a call, such as whether it fills or reads its own cache."""
    return {name: value for name, value in arguments.items() if isinstance(value, MODES)}


def has_same_conditioning(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two calls have equal conditioning; values are read only if the storage differs."""
    if a.keys() != b.keys():
        return False
    for name, value in a.items():
        other = b[name]
        if value is not other and not is_same_value(value, other):
            return False
    return True


def is_same_value(a: Any, b: Any) -> bool:
    """Whether these are equal plain values, the same storage, or equal tensors."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return bool(a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b))
    if is_same_storage(a, b):
        return True
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    return torch.equal(a, b)
