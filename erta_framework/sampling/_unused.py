"""Says when nothing was reused although policies were asked to."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence

from erta_framework.errors import UnusedWarning
from erta_framework.plugins import Engine, Policy
from erta_framework.session import Trace, explain_reason


def warn_unused(engine: Engine, traces: Sequence[Trace]) -> None:
    """Warn if every call of a run was computed although some policy might reuse.

    Policies that own places inside the network save work without leaving out a call, and a plan
    that computes every step was asked for.

    Args:
        engine: The policies.
        traces: One a batch.

    Warns:
        UnusedWarning: Names the policies and the most frequent reason.
    """
    calls = [call for trace in traces for call in trace.calls()]
    if not calls or engine.selecting or any(trace.reused_calls for trace in traces):
        return
    if any(trace.samples_differed for trace in traces):
        return
    steps = {trace.num_steps for trace in traces}
    if asked := dict.fromkeys(policy.name for policy in find_asked(engine, steps)):
        reason, count = Counter(map(explain_reason, calls)).most_common(1)[0]
        warnings.warn(
            f"nothing was reused in {len(traces)} batches, although {' and '.join(asked)} may "
            f"reuse; the most frequent reason, of {count} calls, was {reason!r}; loosen the "
            "threshold, or ask for a number of calls",
            UnusedWarning,
            stacklevel=3,
        )


def find_asked(engine: Engine, steps: set[int]) -> Iterator[Policy]:
    """The listed policies that were asked to reuse: that plan to, or decide while sampling."""
    for policy in engine.implementers("decide"):
        plan = getattr(policy, "plan", None)
        if plan is None:
            if not policy.traits.static:
                yield engine.listed_of(policy)
        elif any(len(plan(count).computed) < count for count in steps if count > 2):
            yield engine.listed_of(policy)
