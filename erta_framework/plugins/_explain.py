"""An engine in words: who answers what, in call order."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from erta_framework.plugins._hooks import is_wrapper
from erta_framework.plugins._hookspecs import HOOKS
from erta_framework.plugins._policy import Policy
from erta_framework.text import shorten

if TYPE_CHECKING:
    from erta_framework.plugins._engine import Engine


def explain_engine(engine: Engine) -> str:
    """Policies, hooks, memory and kind of schedule of an engine; wrappers stand in brackets."""
    if not engine.policies:
        return "no policies: every step is computed"
    lines = ["policies, in call order:"]
    for position, policy in enumerate(engine.policies):
        lines.append(f"  {position}  {policy!r}")
    lines.append("hooks, in call order:")
    for hook in HOOKS:
        names = [
            f"[{policy.name}]" if is_wrapper(hook, policy) else policy.name
            for policy in engine.implementers(hook)
        ]
        if hook in ("decide", "forward"):
            names.append("core")
        lines.append(f"  {hook:17} {' -> '.join(names) if names else '-'}")
    memory, static = engine.traits.memory, engine.traits.static
    lines.append(
        f"remembered per branch: {memory.evaluations} evaluations"
        + (" with inputs and outputs" if memory.pairs else " (residuals)")
        + f"; schedule is {'static' if static else 'decided while sampling'}"
    )
    return "\n".join(lines)


def describe_policy(policy: Policy) -> str:
    """A policy with the settings that were given, and without its defaults.

    Example:
        >>> from erta_framework.testing import AlternateSteps
        >>> describe_policy(AlternateSteps())
        'AlternateSteps()'
    """
    given = (
        f"{field.name}={describe_setting(getattr(policy, field.name))}"
        for field in fields(policy)
        if differs(field, getattr(policy, field.name))
    )
    return f"{type(policy).__name__}({', '.join(given)})"


def describe_setting(value: Any) -> str:
    """A setting in a few words."""
    if isinstance(value, Policy):
        return describe_policy(value)
    if is_dataclass(value) and not isinstance(value, type):
        held = {field.name: getattr(value, field.name) for field in fields(value)}
        return repr({name: each for name, each in held.items() if each is not None})
    return shorten(repr(value))


def differs(field: Field[Any], value: Any) -> bool:
    """Whether a setting is not its default."""
    if field.default is not MISSING:
        return field.default is not value and repr(field.default) != repr(value)
    return field.default_factory is MISSING or repr(field.default_factory()) != repr(value)
