"""What the trace holds of one call and of one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class CallTrace:
    """One branch of one step.

    Attributes:
        index: Step in the schedule.
        branch: Guidance branch.
        model: Network within the pipeline.
        computed: Whether the network ran, counted where it is called.
        reason: Why it was computed or reused.
        source: Step whose evaluation a reused answer was made from.
        seconds: Host seconds in the call (on a GPU, time to enqueue).
        rows: Samples that the network ran on, after a per-sample decision; None where the whole
            batch was treated alike.
        signals: Signals that policies looked at; a probe among them ran part of the network.
        trials: Times a policy ran the network on other latents or at another time.
        source_branch: Branch whose evaluation it was reused from, where it is another one's.
        path: Place inside the network; empty for the whole network.
        share: The part of the network's work that ran, where places inside it were left out and
            what they cost is known, or where it ran on part of the tokens; of the samples that it
            ran on.
        sites: Places inside the network that ran, were reused and were skipped, by kind, where
            policies own some.
    """

    index: int
    branch: str
    model: str
    computed: bool
    reason: str
    source: int | None
    seconds: float
    rows: tuple[int, ...] | None = None
    signals: tuple[str, ...] = ()
    trials: int = 0
    source_branch: str | None = None
    path: str = ""
    share: float = 1.0
    sites: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)

    def computed_for(self, sample: int) -> bool:
        """Whether the network ran on one sample of the batch."""
        return self.computed if self.rows is None else sample in self.rows


@dataclass(frozen=True, slots=True)
class StepTrace:
    """One settled step: the calls of its branches and the interval that was integrated.

    `inner` holds the calls of places inside the networks, which count as no network calls.
    """

    index: int
    start: float
    end: float
    time: float
    calls: tuple[CallTrace, ...]
    inner: tuple[CallTrace, ...] = ()

    @property
    def computed(self) -> bool:
        """Whether the network ran at least once in this step."""
        return any(call.computed for call in self.calls)

    def computed_for(self, sample: int) -> bool:
        """Whether the network ran at least once on one sample of the batch."""
        return any(call.computed_for(sample) for call in self.calls)
