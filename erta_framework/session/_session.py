"""`Session`: the state machine of one request, between any driver and the policies.

Over 250 lines because the verbs and the stages that allow them belong on one page; deciding,
answering, recording and the words of a refusal are parts of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, overload

from torch import Tensor

from erta_framework.errors import ProtocolError
from erta_framework.session._answerer import Answerer
from erta_framework.session._call import Call
from erta_framework.session._decider import Decider
from erta_framework.session._decisions import Answer, Compute
from erta_framework.session._function_network import FunctionNetwork
from erta_framework.session._guided import Guided, check_adjusted
from erta_framework.session._history import History
from erta_framework.session._network import Network
from erta_framework.session._notes import list_notes
from erta_framework.session._protocol import (
    OpenCall,
    SessionStage,
    check_inside,
    check_next,
    refuse_order,
    refuse_second,
    refuse_stage,
    refuse_unadjusted,
    refuse_unanswered,
    refuse_unsettled,
)
from erta_framework.session._site import Site
from erta_framework.session._state import StateStore
from erta_framework.session._step import Interval, SessionInfo, Step
from erta_framework.session._step_recorder import NO_PLACES, PlaceCounts, StepRecorder
from erta_framework.session._trace import Trace
from erta_framework.session._validation import check_interval
from erta_framework.session._where import Where


class Held(Protocol):
    """Something that lives as long as a session."""

    def clear(self) -> None:
        """Forget everything."""
        ...


# an attribute of an enum is looked up in Python, and every verb looks
NEW, BETWEEN, RUNNING = SessionStage.NEW, SessionStage.BETWEEN, SessionStage.RUNNING
SETTLED, CLOSED = SessionStage.SETTLED, SessionStage.CLOSED

if TYPE_CHECKING:
    from erta_framework.calibration import Profile
    from erta_framework.plugins import Engine


class Session:
    """One request. A driver calls `begin`, `forward` per branch, `settle` and `end`, in order.

    Made by `Engine.session(info)` and used once, as a context manager. Everything it remembers
    is dropped when it closes, also after an exception. Calls may be nested: while the network of
    one runs, a driver may call `forward` for sites inside it.

    Example:
        >>> with engine.session(info) as session:  # doctest: +SKIP
        ...     for interval in intervals:
        ...         session.begin(interval)
        ...         v = session.forward(x, lambda: network(x))
        ...         settled = session.settle()
        ...         x = x + (settled.end - settled.start) * v
        ...         session.end(x)
    """

    def __init__(self, engine: Engine, info: SessionInfo) -> None:
        self.engine = engine
        # its own store: two sessions made from one description share nothing
        self.info = replace(info, states=StateStore(engine.owners))
        notes = list_notes(engine.policies, self.info)
        self.trace = Trace(request_id=info.request_id, num_steps=info.num_steps, notes=notes)
        self.emitted: list[Profile] = []
        self._history = History(engine.traits.memory, self.info.reused)
        self._where = Where(engine, self.info)
        self._decider = Decider(engine, self._history, self._where)
        self._answerer = Answerer(engine, self._history, self.trace, self._where)
        self._recorder = StepRecorder(self.trace)
        self._stage = NEW
        self._expected = info.first
        self._step: Step | None = None
        self._answers: dict[str, Answer] = {}
        self._inside: set[Site] = set()
        self._open: list[OpenCall] = []
        self._held: list[Held] = []
        self._adjusts = "adjust_prediction" in engine.active
        self._adjusted = False

    # ----------------------------------------------------------------- life
    def __enter__(self) -> Self:
        self._require(NEW, verb="enter")
        self._stage = BETWEEN
        try:
            if "on_session_start" in self.engine.active:
                self.engine.call_hook("on_session_start", self._where, self.info)
        except BaseException as error:
            self._close(error)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close(error)

    def _close(self, error: BaseException | None) -> None:
        self._stage = CLOSED
        if error is not None:
            self.trace.stopped = str(error) or type(error).__name__
        try:
            if "on_session_end" in self.engine.active:
                self.emitted = self.engine.end_session(self._where, self.info, error)
        except Exception as second:
            if error is None:
                raise
            error.add_note(f"on_session_end failed as well: {second}")
        finally:
            for thing in self._held:
                thing.clear()
            self._history.clear()
            self.info.states.clear()
            self._answers, self._step = {}, None
            self._open.clear()

    def hold(self, thing: Held) -> None:
        """Clear something of the driver's when this session closes, also after an exception."""
        self._held.append(thing)

    @property
    def step(self) -> Step:
        """The open step.

        Raises:
            ProtocolError: No step is open.
        """
        if self._step is None:
            raise ProtocolError("no step is open; begin one first")
        return self._step

    @property
    def where(self) -> Callable[[], str]:
        """Says which step and request this is, for messages."""
        return self._where

    def note_work(
        self, site: Site, share: float, samples: int, counts: PlaceCounts = NO_PLACES
    ) -> None:
        """Note for the trace how much of a network ran in the call that runs now.

        Args:
            site: Network and branch.
            share: The part of the network's work that ran.
            samples: Samples that it ran on.
            counts: Places inside it that ran, were reused and were skipped, by kind.
        """
        self._recorder.note_work(site, share, samples, counts, self._answers.get(site.branch))

    @property
    def time(self) -> float:
        """The timestep that the network is given in the open step.

        Raises:
            ProtocolError: No step is open.
        """
        if self._step is None:
            raise ProtocolError("no step is open, so there is no timestep for the network")
        return self._step.interval.time

    # ---------------------------------------------------------------- verbs
    def begin(self, interval: Interval, branches: Sequence[str] = ()) -> Step:
        """Open a step.

        Args:
            interval: The provisional interval; its index comes from the driver's schedule.
            branches: Branches that will be evaluated in this step, where the driver knows them.
                A branch with no usable history then makes the whole step compute.

        Raises:
            ProtocolError: Another step is open, or the index is not the next one.
        """
        self._require(BETWEEN, verb="begin")
        check_next(interval.index, self._expected, self.info.num_steps)
        step = self._step = Step(interval, self.info, tuple(branches))
        self._where.index = self._expected
        self._decider.begin(step)
        self._answerer.begin(step)
        self._recorder.begin(self._expected)
        self._answers = {}
        self._inside.clear()
        self._stage = RUNNING
        if "pre_step" in self.engine.active:
            self.engine.call_hook("pre_step", self._where, step)
        return step

    @overload
    def forward(self, site: Site, x: Tensor, network: Network, /) -> Tensor: ...

    @overload
    def forward(
        self,
        x: Tensor,
        compute: Callable[[], Tensor],
        /,
        *,
        branch: str = "cond",
        model: str = "model",
    ) -> Tensor: ...

    def forward(
        self,
        first: Any,
        second: Any,
        network: Network | None = None,
        /,
        *,
        branch: str = "cond",
        model: str = "model",
    ) -> Tensor:
        """The prediction at one site of the open step, from the network or from the cache.

        Drivers call `forward(site, x, network)`. A loop that is driven by hand may instead call
        `forward(x, compute, branch=...)`, where `compute` is a function that runs the network.

        Args:
            first (Site | Tensor): The site; or the input `x`, `[B, C, ...]`.
            second (Tensor | Callable[[], Tensor]): The input `x`; or `compute`, which is called at
                most once.
            network (Network | None): The network call; left out in the short form.
            branch (str): Name of the guidance branch, in the short form.
            model (str): Name of the network, in the short form, where a pipeline has several.

        Returns:
            prediction (Tensor): Of the shape of `x`.

        Raises:
            ProtocolError: No step is open, or this branch already has its prediction.
            PolicyError: A policy raised, or returned something impossible.
        """
        if network is None:
            site, x, network = Site(model, branch), first, FunctionNetwork(second)
        else:
            site, x = first, second
        return self.answer(self.ask(site, x, network))

    def ask(self, site: Site, x: Tensor, network: Network, *, started: float | None = None) -> Call:
        """The first half of `forward`: decide whether to compute. `answer` must follow.

        It is for drivers that are already inside the network when they must decide. Where
        `call.reused` is false, such a driver lets the network run on; `network.run` then returns
        what it has produced by the time of `answer`. Between the two halves, the driver may call
        `forward`, or `ask` and `answer`, for sites inside this one.

        Args:
            site: Network, branch and place inside the network.
            x: Input, `[B, C, ...]`.
            network: The network call.
            started: When the call began, by `time.perf_counter()`, if the network ran before this.

        Returns:
            The call, with its decision.

        Raises:
            ProtocolError: No step is open, or this site already has its prediction.
            PolicyError: A policy raised, or decided something impossible.
        """
        self._require(RUNNING, verb="forward")
        inner = bool(self._open)
        if inner:
            check_inside(site, self._open[-1].call.site, self._inside, self._expected)
        elif site.branch in self._answers:
            refuse_second(site.branch, self._expected)
        started = time.perf_counter() if started is None else started
        compute = self._answerer.computation(site, x, network, inner)
        call = self._decider.decide(site, x, compute, self._answers)
        self._open.append(OpenCall(call, started))
        return call

    def answer(self, call: Call) -> Tensor:
        """The second half of `forward`: the prediction, of the shape of `call.x`.

        Raises:
            ProtocolError: It is not the call that the last `ask` returned.
            PolicyError: A policy raised, or returned something impossible.
        """
        self._require(RUNNING, verb="answer")
        if not self._open or self._open[-1].call is not call:
            refuse_order(call.site, self._open, self._expected)
        depth, started = len(self._open) - 1, self._open[-1].started
        try:
            output, rows, reason = self._answerer.answer(call)
        finally:
            left = self._open[depth + 1 :]
            del self._open[depth:]
        if left:
            refuse_unanswered(call.site, left[0].call.site, self._expected)
        record = self._recorder.record(call, rows, reason, started, inner=bool(self._open))
        if self._open:
            self._inside.add(call.site)
        else:
            self._answers[call.site.branch] = Answer(
                call.decision, output, record.computed, record.source
            )
        return output

    def note(
        self,
        output: Tensor,
        *,
        branch: str = "cond",
        model: str = "model",
        reason: str,
        started: float,
    ) -> None:
        """Record a branch of the open step that the driver computed without the policies.

        It is for networks that no policy may skip. The trace counts the call; no history is kept.

        Args:
            output: What the network predicted.
            branch: Name of the guidance branch.
            model: Name of the network.
            reason: Why no policy decided, for the trace.
            started: When the call began, by `time.perf_counter()`.

        Raises:
            ProtocolError: No step is open, or this branch already has its prediction.
        """
        self._require(RUNNING, verb="note")
        if branch in self._answers:
            refuse_second(branch, self._expected)
        self.trace.count(output)
        self._answers[branch] = Answer(Compute(reason), output, True, None)
        self._recorder.record_undecided(branch, model, reason, started)

    def settle(self) -> Interval:
        """End the evaluations of this step; the interval that the solver must integrate.

        Raises:
            ProtocolError: No forward ran in this step.
            PolicyError: The adjusted interval is impossible, or the last one does not end at the
                schedule's end.
        """
        self._require(RUNNING, verb="settle")
        if self._open:
            refuse_unsettled(self._open[0].call.site, self._expected)
        if not self._answers or self._step is None:
            raise ProtocolError(f"settle before any forward in step {self._expected}")
        given = settled = self._step.interval
        if "adjust_interval" in self.engine.active:
            adjusted = self.engine.call_hook(
                "adjust_interval", self._where, self._step, self._answers
            )
            settled = given if adjusted is None else adjusted
        check_interval(self.info, given, settled, self._where.owner, self._where)
        self._recorder.settle(settled)
        self._stage, self._adjusted = SETTLED, False
        return settled

    @property
    def adjusts(self) -> bool:
        """Whether a policy wants the guided prediction: `adjust` must then come before `end`."""
        return self._adjusts

    def adjust(self, guided: Guided) -> Tensor:
        """The guided prediction as the solver must get it; between `settle` and `end`.

        Only where `adjusts`: else a driver need not make the record.

        Args:
            guided: The prediction that guidance made of the branches, with its latents.

        Returns:
            prediction (Tensor): Of the shape of `guided.prediction`.

        Raises:
            ProtocolError: The step is not settled, or its prediction was adjusted already.
            PolicyError: A policy raised, or returned something impossible.
        """
        self._require(SETTLED, verb="adjust")
        if self._adjusted:
            raise ProtocolError(f"adjust was called twice in step {self._expected}; call it once")
        self._adjusted = True
        if not self._adjusts:
            return guided.prediction
        output = self.engine.call_hook("adjust_prediction", self._where, self._step, guided)
        return check_adjusted(guided, output, self._where.owner, self._where)

    def end(self, sample: Tensor) -> None:
        """Close the step with the latents after the solver, `[B, C, ...]`.

        Raises:
            ProtocolError: The step is not settled, or `adjust` is missing.
        """
        self._require(SETTLED, verb="end")
        if self._adjusts and not self._adjusted:
            refuse_unadjusted(self._where.owner("adjust_prediction"), self._expected)
        if "post_step" in self.engine.active:
            self.engine.call_hook("post_step", self._where, self._step, sample)
        self._expected += 1
        self._where.index = self._expected
        self._stage = BETWEEN

    def _require(self, stage: SessionStage, verb: str) -> None:
        if self._stage is not stage:
            refuse_stage(verb, self._stage, stage, self.info.request_id)
