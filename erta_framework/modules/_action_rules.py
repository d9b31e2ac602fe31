"""Which method carries an action out at a place, and why it cannot be."""

from __future__ import annotations

from collections.abc import Mapping

from erta_framework.modules._actions import (
    Action,
    Ask,
    Keep,
    Pass,
    ReuseKept,
    Rows,
    Skip,
    Tokens,
)
from erta_framework.session import Evaluations

HANDLERS: Mapping[type, str] = {
    Keep: "keep",
    ReuseKept: "reuse",
    Skip: "skip",
    Pass: "pass_through",
    Rows: "run_rows",
    Tokens: "run_tokens",
    Ask: "ask",
}
"""Which method answers at the module that gives the output, under which action."""

INNER: Mapping[tuple[type, bool], str] = {
    (Keep, True): "run_streams",
    (ReuseKept, False): "skip",
    (ReuseKept, True): "pass_through",
    (Skip, False): "skip",
    (Pass, False): "pass_through",
}
"""Which method answers at the modules before it, under which action, of residuals or not."""


def find_misfit(
    action: Action, kept: Evaluations, depth: int, modules: int
) -> tuple[str, str] | None:
    """What was asked of a place and why it cannot be; None if it can.

    Args:
        action: What was assigned.
        kept: What the place keeps, newest first.
        depth: How many outputs its owner keeps.
        modules: How many modules it is made of.
    """
    if isinstance(action, ReuseKept):  # first, and without a look at names: forecasts are many
        return find_reuse_misfit(action, kept, depth)
    assigned = f"assigned {type(action).__name__} to"
    if isinstance(action, Rows | Tokens) and not kept:
        return assigned, "nothing is kept; KEEP it first"
    if isinstance(action, Rows) and modules > 1:
        return assigned, f"it is {modules} modules; select single modules"
    return None


def find_reuse_misfit(action: ReuseKept, kept: Evaluations, depth: int) -> tuple[str, str] | None:
    """The same of a reuse."""
    if len(kept) < action.depth:
        why = f"{len(kept)} of {action.depth} outputs are kept; KEEP it first"
        if depth < action.depth:
            why += f", and let keeps() be {action.depth}"
        return f"reuses {action.depth} outputs of", why
    if f"{action.of}.0.0" not in kept[0].tensors:
        found = next(iter(kept[0].tensors)).partition(".")[0]
        return f"reuses the {action.of} of", f"its {found} is kept; KEEP and reuse one"
    return None
