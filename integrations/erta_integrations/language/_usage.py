"""What was attached and did nothing, in words for a warning."""

from __future__ import annotations

from collections.abc import Sequence

from erta_framework import Engine, Trace


def explain_unentered(pipe: object) -> str:
    """What to do about an attachment that was never entered."""
    return (
        f"the attachment to {type(pipe).__name__} was never entered, so nothing was reused; write "
        "`with attach(...) as run:` around the calls of the pipeline"
    )


def explain_unused(engine: Engine, traces: Sequence[Trace], pipe: object) -> str:
    """What to do where every call ran on every token, if a rule may reuse; else empty.

    Args:
        engine: The policies.
        traces: Of the newest blocks; one of two steps has nothing to reuse yet.
        pipe: The pipeline.
    """
    asked = [p.name for p in engine.implementers("decide") if not p.traits.static]
    long = [trace for trace in traces if len(trace.steps) > 2 and not trace.stopped]
    if not asked or not long:
        return ""
    return (
        f"nothing was reused in {len(long)} requests of {type(pipe).__name__}, although "
        f"{' and '.join(asked)} may reuse: every call ran on every token; let the rule refresh "
        "less often, or take longer prompts and more blocks"
    )
