"""An engine in words: who answers what, in call order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from erta_framework.plugins._hooks import is_wrapper
from erta_framework.plugins._hookspecs import HOOKS

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
