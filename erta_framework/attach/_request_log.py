"""What is kept of the requests of an attachment once they are closed."""

from __future__ import annotations

from erta_framework.calibration import Profile
from erta_framework.errors import InputError, ProfileError
from erta_framework.session import Session, Trace

KEEP_TRACES = 1000
"""Traces that an attachment keeps if it is told nothing else."""
KEEP_PROFILES = 64
"""Profiles that are kept apart; older ones are merged."""


class RequestLog:
    """The newest traces and the emitted profiles, so that a server does not fill its memory.

    Of a trace that is dropped, its calls stay counted. Of a profile nothing is dropped: the oldest
    ones of the same run are added up, as `Profile.merge` would do in the end.

    Args:
        keep: Traces to keep; None keeps all.

    Attributes:
        traces: The newest traces, oldest first.
        emitted: The emitted profiles, oldest first.
        closed: Requests so far.

    Raises:
        InputError: `keep` is below 1.
    """

    def __init__(self, keep: int | None = KEEP_TRACES) -> None:
        if keep is not None and keep < 1:
            raise InputError(
                f"keep_traces is {keep}, it must be at least 1; keep_traces=None keeps all"
            )
        self.keep = keep
        self.traces: list[Trace] = []
        self.emitted: list[Profile] = []
        self.closed = 0
        self._dropped_calls = self._dropped_reuses = 0

    def add(self, session: Session) -> None:
        """Keep what a closed session leaves."""
        self.closed += 1
        self.traces.append(session.trace)
        if self.keep is not None and len(self.traces) > self.keep:
            oldest = self.traces.pop(0)
            self._dropped_calls += oldest.network_calls
            self._dropped_reuses += oldest.reused_calls
        self.emitted.extend(session.emitted)
        if len(self.emitted) > KEEP_PROFILES:
            self._merge_oldest()

    def profile(self) -> Profile:
        """All emitted profiles as one.

        Raises:
            ProfileError: Nothing was emitted; names the requests that stopped early.
        """
        stopped = [trace for trace in self.traces if trace.stopped]
        if not self.emitted and stopped:
            each = "; ".join(
                f"{trace.request_id} after {len(trace.steps)} steps ({trace.stopped})"
                for trace in stopped
            )
            raise ProfileError(
                f"nothing to merge: a profile needs every step of a request, and these stopped "
                f"before their last one: {each}; let a request run to its end"
            )
        return Profile.merge(self.emitted)

    def summary(self) -> str:
        """What the traces say, and what was dropped."""
        lines = [trace.summary() for trace in self.traces]
        if dropped := self.closed - len(self.traces):
            lines.insert(
                0,
                f"{dropped} earlier requests: {self._dropped_calls} network calls, "
                f"{self._dropped_reuses} branch calls reused; their traces were dropped "
                f"(keep_traces={self.keep})",
            )
        return "\n".join(lines)

    def _merge_oldest(self) -> None:
        """Add the oldest profile to the next one of the same run, if there is one."""
        for place, oldest in enumerate(self.emitted):
            for later in self.emitted[place + 1 :]:
                if later.kind == oldest.kind and later.fingerprint == oldest.fingerprint:
                    self.emitted.remove(later)
                    self.emitted[place] = Profile.merge([oldest, later])
                    return
