"""`StepRecorder`: what the calls of each step did, written into the trace of the request."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from erta_framework.session._call import Call
from erta_framework.session._decisions import Answer, Reuse
from erta_framework.session._site import Site
from erta_framework.session._step import Interval
from erta_framework.session._trace import Trace
from erta_framework.session._trace_records import CallTrace, StepTrace

PlaceCounts = Mapping[str, tuple[int, int, int]]
NO_PLACES: PlaceCounts = {}
WHOLE: tuple[float, PlaceCounts, float] = (1.0, NO_PLACES, 0.0)


class StepRecorder:
    """Collects the calls of the open step, and adds them to the trace when it settles.

    Args:
        trace: The trace of the request.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._index = 0
        self._calls: list[CallTrace] = []
        self._inner: list[CallTrace] = []
        self._partial: dict[tuple[str, str], tuple[float, PlaceCounts, float]] = {}

    def begin(self, index: int) -> None:
        """Begin another step."""
        self._index = index
        self._calls, self._inner = [], []
        self._partial.clear()

    def note_work(
        self, site: Site, share: float, samples: int, counts: PlaceCounts, answer: Answer | None
    ) -> None:
        """Note how much of a network ran in a call, before or after the call was answered.

        Args:
            site: Network and branch.
            share: The part of the network's work that ran.
            samples: Samples that it ran on.
            counts: Places inside it that ran, were reused and were skipped, by kind.
            answer: That of the branch, where it was answered already.
        """
        key, spared = (site.model, site.branch), (1.0 - share) * samples
        if answer is None:
            before = self._partial.get(key, WHOLE)[2]  # of other samples of the same call
            self._partial[key] = (share, counts, before + spared)
            return
        # at the trunk the network ends after the call of its block stack was answered
        self._calls = [
            replace(call, share=share, sites=counts) if (call.model, call.branch) == key else call
            for call in self._calls
        ]
        if answer.computed:  # else it counts as no network call at all
            self._trace.spare(spared)

    def record(
        self,
        call: Call,
        rows: tuple[int, ...] | None,
        reason: str,
        started: float,
        *,
        inner: bool,
    ) -> CallTrace:
        """Record an answered call.

        Args:
            call: The call.
            rows: The samples computed, where they differ.
            reason: Why it was computed, if nobody decided it.
            started: When it began, by `time.perf_counter()`.
            inner: Whether it lies within another call.
        """
        compute, decision, site = call.compute, call.decision, call.site
        computed = compute.ran if rows is None else bool(rows)
        source = call.history[0].index if call.history and not computed else None
        share, sites, spared = self._partial.pop((site.model, site.branch), WHOLE)
        self._trace.spare(spared)
        lent = decision.branch if isinstance(decision, Reuse) and not computed else None
        record = CallTrace(
            self._index,
            site.branch,
            site.model,
            computed,
            reason or decision.reason,
            source,
            time.perf_counter() - started,
            rows,
            compute.asked,
            compute.trials,
            lent,
            site.path,
            share,
            sites,
        )
        (self._inner if inner else self._calls).append(record)
        return record

    def record_undecided(self, branch: str, model: str, reason: str, started: float) -> None:
        """Record a call that the driver computed without the policies."""
        seconds = time.perf_counter() - started
        self._calls.append(CallTrace(self._index, branch, model, True, reason, None, seconds))

    def settle(self, interval: Interval) -> None:
        """Add the step to the trace, with the interval that is integrated."""
        self._trace.steps.append(
            StepTrace(
                interval.index,
                interval.start,
                interval.end,
                interval.time,
                tuple(self._calls),
                tuple(self._inner),
            )
        )
