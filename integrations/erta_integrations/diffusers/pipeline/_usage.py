"""`Usage`: what was attached and never driven, or never reused, in words for a warning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from erta_framework import Engine, Policy, Trace
from erta_framework.budgets import as_planner
from erta_integrations.diffusers.pipeline._parts import PipelineParts

COLD = "cold"
"""The reason of a call that had nothing to reuse."""


class Usage:
    """Counts network calls outside any request, and says what an attachment did not do.

    Args:
        engine: The policies; an engine without any is asked for nothing.
        parts: What is driven.

    Attributes:
        outside: Network calls that belong to no request, by network and by who made them.
        copied: Networks of which deep copies were made.
    """

    def __init__(self, engine: Engine, parts: PipelineParts) -> None:
        self.engine, self.parts = engine, parts
        self.outside: Counter[tuple[str, str]] = Counter()
        self.copied: set[str] = set()
        self._called: set[str] = set()  # networks, within requests
        # in requests of several steps that ran to their end:
        self._reasons: Counter[str] = Counter()
        self._steps: set[int] = set()
        self._requests = self._reused = 0

    def note_outside(self, name: str, who: str) -> None:
        """A network was called outside any request."""
        self.outside[name, who] += 1

    def note_request(self, trace: Trace) -> None:
        """A request closed."""
        calls = list(trace.calls())
        self._called.update(call.model.partition("#")[0] for call in calls)
        asked = [call for call in calls if call.model.partition("#")[0] in self.parts.networks]
        if asked and len(trace.steps) > 2 and not trace.stopped:
            self._requests += 1
            self._steps.add(trace.num_steps)
            self._reused += trace.reused_calls
            self._reasons.update(call.reason for call in asked)

    def explain_unentered(self) -> str:
        """What to do about an attachment that was never entered."""
        return (
            f"the attachment to {type(self.parts.pipe).__name__} was never entered, so nothing "
            "was reused; write `with attach(...) as run:` around the calls of the pipeline, or "
            "erta.enable(pipe, ...), which lasts until erta.disable(pipe)"
        )

    def describe_outside(self) -> str:
        """The calls outside any request, in words; empty if there are none."""
        return "; ".join(
            f"{count} calls of {name} outside any request, by {who}"
            for (name, who), count in self.outside.items()
        )

    def find_faults(self) -> Iterator[str]:
        """What was asked for and did not happen, each with the remedy."""
        if not self.engine.policies:
            return
        pipe = type(self.parts.pipe).__name__
        for name, network in self.parts.networks.items():
            callers = sorted(who for found, who in self.outside if found == name)
            label = f"{name} ({type(network).__name__}) of {pipe}"
            if name not in self._called and callers:
                yield (
                    f"{label} was called {self._count_outside(name)} times, by "
                    f"{' and '.join(callers)}, but no call belonged to a request on the attached "
                    f"{type(self.parts.scheduler).__name__}, so nothing was reused; attach the "
                    "pipeline that runs, or give its copy a scheduler from "
                    "copy.deepcopy(pipe.scheduler)"
                )
        if self.copied and not self._called and not self.outside:
            yield (
                f"no network of {pipe} was called while it was attached, but a deep copy of "
                f"{' and '.join(sorted(self.copied))} was made, which is not attached; use "
                "copy.copy(pipe), which shares the networks, or attach the deep copy itself"
            )
        if self._reused or not self._requests:
            return
        # policies decide, and yet each call was one of those that have nothing to reuse
        if "decide" in self.engine.active and set(self._reasons) == {COLD}:
            yield (
                f"no policy could reuse anything in {self._requests} requests of {pipe}: every "
                "call looked like the first of its branch; keep shape and conditioning of a "
                "branch the same at every step"
            )

        elif asked := dict.fromkeys(policy.name for policy in self._find_asked()):
            reason, count = self._reasons.most_common(1)[0]
            yield (
                f"nothing was reused in {self._requests} requests of {pipe}, although "
                f"{' and '.join(asked)} may reuse; the most frequent reason, of {count} calls, was "
                f"{reason!r}; loosen the threshold, or ask for a number of calls"
            )

    def _find_asked(self) -> Iterator[Policy]:
        """The policies that were asked to reuse: those that plan to, or decide while sampling."""
        for policy in self.engine.implementers("decide"):
            planner = as_planner(policy)
            if planner is None:
                if not policy.traits.static:
                    yield self.engine.listed_of(policy)
            elif any(len(planner.plan(steps).computed) < steps for steps in self._steps):
                yield self.engine.listed_of(policy)

    def _count_outside(self, name: str) -> int:
        return sum(count for (found, _), count in self.outside.items() if found == name)
