"""A trace as a strip of steps in HTML, for notebooks and pages."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from erta_framework.session._trace_records import StepTrace
from erta_framework.session._trace_summary import explain_reason
from erta_framework.text import escape_line

if TYPE_CHECKING:
    from erta_framework.session._trace import Trace

COMPUTED, REUSED = "#2f6fde", "#f2a33a"
MOST = 1000
"""Steps that a strip shows; a longer one would be too much for a page."""


def render_strip(trace: Trace) -> str:
    """One cell a step, blue where the network ran; the reasons appear when the mouse rests on one.

    Example:
        >>> render_strip(Trace("request-0")).startswith("<div")  # doctest: +SKIP
        True
    """
    cells = "".join(map(render_cell, trace.steps[:MOST]))
    left = len(trace.steps) - MOST
    more = f" and {left} more" if left > 0 else ""
    return (
        f'<div class="erta-strip" style="line-height:1.4"><div>{escape(trace.headline())}</div>'
        f'<div style="display:flex;flex-wrap:wrap;gap:2px">{cells}{more}</div></div>'
    )


def render_cell(step: StepTrace) -> str:
    """One step."""
    lines = [f"step {step.index}"]
    for call in step.calls:
        done = "computed" if call.computed else f"reused, of step {call.source}"
        why = explain_reason(call)
        said = why if why == call.reason else f"{why} ({call.reason})"
        lines.append(f"{call.branch}: {done}: {said}")
    title = escape("\n".join(map(escape_line, lines)), quote=True)
    colour = COMPUTED if step.computed else REUSED
    return (
        f'<span title="{title}" style="width:10px;height:18px;background:{colour};'
        'display:inline-block;border-radius:2px"></span>'
    )
