"""Which hooks a policy implements, whether they are marked as they must be, and who raised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from erta_framework.errors import PolicyError, suggest
from erta_framework.plugins._hookspecs import HOOKS, PROJECT
from erta_framework.plugins._policy import Policy


def find_hooks(cls: type) -> frozenset[str]:
    """Names of the methods of a class that are marked with `@hookimpl`."""
    mark = f"{PROJECT}_impl"
    return frozenset(name for name in dir(cls) if hasattr(getattr(cls, name, None), mark))


def read_hook_options(policy: Policy, hook: str) -> Mapping[str, Any]:
    """What a policy's `@hookimpl` mark of a hook says."""
    options: Mapping[str, Any] = getattr(getattr(type(policy), hook), f"{PROJECT}_impl")
    return options


def is_wrapper(hook: str, policy: Policy) -> bool:
    """Whether a policy's implementation of a hook wraps those of others."""
    return bool(read_hook_options(policy, hook)["wrapper"])


def check_hooks(policy: Policy) -> tuple[str, ...]:
    """The hooks that a policy implements, in the order of `HOOKS`.

    Raises:
        PolicyError: It implements none or an unknown one, a mark is missing, or a mark asks for a
            place in the call order.
    """
    marked = find_hooks(type(policy))
    for name in HOOKS:
        if name not in marked and hasattr(type(policy), name):
            raise PolicyError(
                f"{policy!r} has a method {name!r} without @hookimpl, which would never be "
                "called; mark it, or rename it"
            )
    unknown = sorted(marked - set(HOOKS))
    if unknown:
        raise PolicyError(
            f"{policy!r} implements the unknown hook {unknown[0]!r}; " + suggest(unknown[0], HOOKS)
        )
    if not marked:
        raise PolicyError(
            f"{policy!r} implements no hook; mark a method with @hookimpl, one of: "
            + ", ".join(HOOKS)
        )
    for name in marked:
        options = read_hook_options(policy, name)
        if options["tryfirst"] or options["trylast"] or options["hookwrapper"]:
            raise PolicyError(
                f"{policy!r} marks {name!r} tryfirst, trylast or hookwrapper; the listed order "
                "is the call order, use a plain @hookimpl or @hookimpl(wrapper=True)"
            )
    return tuple(name for name in HOOKS if name in marked)


def find_raiser(error: BaseException, policies: Sequence[Policy]) -> Policy | None:
    """The policy in whose method an exception arose, from the frames of its traceback."""
    if isinstance(error, PolicyError) and error.__cause__ is not None:
        error = error.__cause__
    found, trace = None, error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        owner = trace.tb_frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        found = next((p for p in policies if p is owner), found)
        trace = trace.tb_next
    return found
