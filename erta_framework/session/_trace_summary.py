"""The words of a trace: a few lines on what a request did, and why."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from erta_framework.session._trace_records import CallTrace

if TYPE_CHECKING:
    from erta_framework.session._trace import Trace

FEW = 16
"""Samples whose calls are listed one by one, and places that are named."""
PLAIN = {
    "cold": "nothing cached yet",
    "default": "no policy asked to reuse",
    "schedule": "as planned",
    "warm-up": "among the first steps, which are always computed",
    "tail": "among the last steps, which are always computed",
    "last step": "the last step, which is always computed",
}
"""Reasons as users read them."""
MEASURED = ("change", "error", "distance", "drift", "difference")
"""What a reason that names a number compares with a threshold ends with."""


def summarize(trace: Trace) -> str:
    """Calls made and saved, with the reasons, and what went wrong."""
    reasons = Counter((call.computed, explain_reason(call)) for call in trace.calls())
    lines = [
        f"request {trace.request_id!r}: {trace.network_calls} network calls, "
        f"{trace.reused_calls} branch calls reused, "
        f"{len(trace.computed_steps)} of {len(trace.steps)} steps computed, "
        f"{trace.history_bytes / 1e6:.2f} MB of history"
    ]
    if trace.spared_samples:
        calls = trace.work * trace.network_calls / trace.network_samples
        lines[0] = lines[0].replace(" network calls", f" network calls, the work of {calls:.1f}", 1)
    if trace.module_bytes:
        lines[0] += f", {trace.module_bytes / 1e6:.2f} MB kept of modules"
    if trace.driver_bytes:
        lines[0] += f", {trace.driver_bytes / 1e6:.2f} MB of further outputs"
    if trace.token_total:
        lines[0] += f", {trace.token_rows} of {trace.token_total} tokens computed"
    if trace.trial_calls:
        lines[0] += (
            f", {trace.trial_calls} trial calls beside them (on the latents of "
            f"{trace.trial_share:.2f} network calls)"
        )
    if trace.samples_differed:
        lines.append(
            f"  samples differed: {format_calls([*map(trace.calls_for, range(trace.batch))])}"
        )
    for (computed, reason), count in reasons.most_common():
        lines.append(f"  {'computed' if computed else 'reused  '} {count:4d}  {reason}")
    if trace.stopped:
        lines.append(
            f"  stopped after {len(trace.steps)} steps of {trace.num_steps}: {trace.stopped}"
        )
    if wrong := trace.find_nonfinite():
        places = ", ".join(f"step {index} ({branch})" for index, branch in wrong)
        lines.append(f"  reused outputs that are not finite: {places}")
    lines.extend(f"  note: {note}" for note in trace.notes)
    for owner, paths in trace.unassigned.items():
        lines.append(
            f"  {owner} owns {len(paths)} places that it never assigned an action: "
            f"{', '.join(paths[:FEW])}{', ...' if len(paths) > FEW else ''}"
        )
    return "\n".join(lines)


def explain_reason(call: CallTrace) -> str:
    """Why a call was computed or reused, in plain words; the same for every number in it.

    Example:
        >>> explain_reason(CallTrace(3, "cond", "net", False, "error 0.04 < 0.07", 2, 0.0))
        'error below the threshold'
    """
    # "error 0.04 < 0.07" differs at every step; the words before the number are the kind
    kind, number = (*re.split(r"\s*(?=\d)", call.reason, maxsplit=1), "")[:2]
    if number and kind.endswith(MEASURED):
        return f"{kind} {'above' if call.computed else 'below'} the threshold"
    return PLAIN.get(kind, kind) or call.reason


def format_calls(calls: list[int]) -> str:
    """The calls of every sample, or of the least and most served where they are many."""
    if len(calls) <= FEW:
        return f"{', '.join(map(str, calls))} calls each"
    mean = sum(calls) / len(calls)
    return f"{min(calls)} to {max(calls)} calls, {mean:.1f} on average over {len(calls)}"
