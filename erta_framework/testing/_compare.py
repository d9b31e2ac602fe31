"""How checks compare runs and settings, and how they fail."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import NoReturn

import torch
from torch import Tensor

from erta_framework.calibration import Profile
from erta_framework.errors import CapabilityError, ErtaError, InputError, ProfileMismatchError
from erta_framework.plugins import Engine, Policy
from erta_framework.sampling import Request, Result
from erta_framework.session import Trace
from erta_framework.testing._setup import ToySetup
from erta_framework.testing._toy import Toy

Check = Callable[[Policy], None]
STATE = "keep what changes in call.state_of or session.state_of, never on the policy or its class"
"""What to do about state that outlives a request."""


class CheckError(ErtaError, AssertionError):
    """A policy failed a check of the conformance kit."""


def fail(policy: Policy, problem: str, remedy: str) -> NoReturn:
    """Fail a check.

    Raises:
        CheckError: Always; names the policy, the problem and the remedy.
    """
    raise CheckError(f"{policy!r}: {problem}; {remedy}")


def list_decisions(trace: Trace) -> list[tuple[int, str, bool, int | None]]:
    """Step, branch, whether the network ran, and source of every call."""
    return [(call.index, call.branch, call.computed, call.source) for call in trace.calls()]


def find_difference(one: Result, other: Result) -> str | None:
    """What differs between two runs that must agree bit for bit, or None."""
    for a, b in zip(list_decisions(one.trace), list_decisions(other.trace), strict=False):
        if a != b:
            return f"the decisions differ: (step, branch, computed, source) {a} / {b}"
    if len(list_decisions(one.trace)) != len(list_decisions(other.trace)):
        return "the numbers of calls differ"
    for first, second in zip(one.trace.steps, other.trace.steps, strict=True):
        if (first.start, first.end, first.time) != (second.start, second.end, second.time):
            return f"the intervals of step {first.index} differ: {first} / {second}"
    if not torch.equal(one.sample, other.sample):
        gap = float((one.sample.double() - other.sample.double()).abs().max())
        return f"the samples differ by up to {gap:.3g}"
    if [p.digest for p in one.emitted] != [p.digest for p in other.emitted]:
        return "the emitted profiles differ"
    return None


def run_or_refuse(setup: ToySetup, engine: Engine, request: Request, toy: Toy) -> Result | None:
    """A run that the policy may refuse by name as long as nothing has run; None if it did.

    A profile that was calibrated for another dtype or guidance must refuse: that is no failure.
    """
    try:
        return setup.run(engine, request, toy)
    except (ProfileMismatchError, CapabilityError, InputError):
        if toy.calls:
            raise
        return None


# -------------------------------------------------------------------------------- settings
def capture_settings(policies: tuple[Policy, ...]) -> dict[str, object]:
    """Comparable pictures of what policies hold, on themselves and on their classes.

    Values of `functools.cached_property` are left out: they are settings worked out once.
    """
    found: dict[str, object] = {}
    for position, policy in enumerate(policies):
        for key, value in vars(policy).items():
            if not isinstance(getattr(type(policy), key, None), cached_property):
                found[f"{position}.{policy.name}.{key}"] = capture_value(value)
        for cls in type(policy).__mro__[: type(policy).__mro__.index(Policy)]:
            for key, value in vars(cls).items():
                # methods and properties are no data
                if not key.startswith("__") and not hasattr(type(value), "__get__"):
                    found[f"{cls.__name__}.{key} (on the class)"] = capture_value(value)
    return found


def capture_value(value: object, depth: int = 8) -> object:
    """A value that compares equal exactly when `value` is as it was."""
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return value
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest = hashlib.sha256(data.numpy().tobytes()).hexdigest()
        return (str(value.dtype), tuple(value.shape), digest)
    if isinstance(value, Profile):
        return value.digest
    if depth == 0:
        return id(value)
    if isinstance(value, Mapping):
        return {repr(key): capture_value(item, depth - 1) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(repr(item) for item in value)
    if isinstance(value, tuple | list):
        return [capture_value(item, depth - 1) for item in value]
    if dataclasses.is_dataclass(value) or hasattr(value, "__dict__"):
        held = {
            key: capture_value(getattr(value, key), depth - 1)
            for key in sorted({*getattr(value, "__dict__", {}), *getattr(value, "__slots__", ())})
            if hasattr(value, key)
            and not isinstance(getattr(type(value), key, None), cached_property)
        }
        return (type(value).__qualname__, held)
    return repr(value)
