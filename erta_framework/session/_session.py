"""`Session`: the state machine of one request, between any driver and the policies."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from erta_framework.errors import PolicyError, ProtocolError
from erta_framework.session._history import History, Key, same_kind
from erta_framework.session._records import (
    Answer,
    Call,
    Compute,
    Decision,
    Evaluation,
    Interval,
    Network,
    Reuse,
    Seam,
    SessionInfo,
    StateStore,
    Step,
    Trial,
)
from erta_framework.session._selection import (
    RowCompute,
    diverged,
    fitted,
    groups,
    part,
    settled,
    visible,
)
from erta_framework.session._trace import CallTrace, StepTrace, Trace
from erta_framework.session._validation import check_interval, check_output, kind_of

if TYPE_CHECKING:
    from erta_framework.calibration import Profile
    from erta_framework.plugins import Engine

NO_FEATURES: Mapping[str, Callable[[], Tensor]] = {}
NO_HISTORY: Mapping[Key, tuple[Evaluation, ...]] = {}
NO_ANSWERS: Mapping[str, Answer] = {}
UNDECIDED = Compute("undecided")
UNASKED = Compute("default")
COLD = Compute("cold")
WHOLE = "the driver cannot run the network on part of it"


class Stage(Enum):
    """Where a session stands; each verb is allowed in some stages only."""

    NEW = "not entered yet"
    BETWEEN = "between steps"
    RUNNING = "within a step"
    SETTLED = "settled, waiting for end(sample)"
    CLOSED = "closed"


class Session:
    """One request. A driver calls `begin`, `forward` per branch, `settle` and `end`, in order.

    Made by `Engine.session(info)` and used once, as a context manager. Everything it remembers
    dies when it closes, also after an exception.

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
        self.info = replace(info, states=StateStore())
        self.trace = Trace(request_id=info.request_id, num_steps=info.num_steps)
        self.emitted: list[Profile] = []
        self._history = History(engine.needs)
        self._stage = Stage.NEW
        self._expected = info.first
        self._step: Step | None = None
        self._decision: Decision | None = None
        self._answers: dict[str, Answer] = {}
        self._calls: list[CallTrace] = []
        self._asked: tuple[Call, float, RowCompute | None] | None = None

    # ----------------------------------------------------------------- life
    def __enter__(self) -> Self:
        self._require(Stage.NEW, verb="enter")
        self._stage = Stage.BETWEEN
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
        self._stage = Stage.CLOSED
        try:
            if "on_session_end" in self.engine.active:
                self.emitted = self.engine.end_session(self._where, self.info, error)
        except Exception as second:
            if error is None:
                raise
            error.add_note(f"on_session_end failed as well: {second}")
        finally:
            self._history.clear()
            self.info.states.clear()
            self._answers, self._step, self._decision = {}, None, None
            self._asked = None

    @property
    def time(self) -> float:
        """What the network is told in the open step.

        Raises:
            ProtocolError: No step is open.
        """
        if self._step is None:
            raise ProtocolError("no step is open, so there is no time that the network is told")
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
        self._require(Stage.BETWEEN, verb="begin")
        if interval.index != self._expected or interval.index >= self.info.num_steps:
            raise ProtocolError(
                f"begin got the interval of step {interval.index}, expected step {self._expected} "
                f"of {self.info.num_steps}; steps run in order, each once"
            )
        self._step = Step(interval, self.info, tuple(branches))
        self._decision, self._answers, self._calls = None, {}, []
        self._stage = Stage.RUNNING
        if "pre_step" in self.engine.active:
            self.engine.call_hook("pre_step", self._where, self._step)
        return self._step

    def forward(
        self,
        x: Tensor,
        compute: Callable[[], Tensor],
        *,
        branch: str = "cond",
        model: str = "model",
        seam: Seam = Seam.LATENT,
        features: Mapping[str, Callable[[], Tensor]] = NO_FEATURES,
        rows: RowCompute | str = WHOLE,
        trial: Trial | None = None,
        started: float | None = None,
    ) -> Tensor:
        """Answer one branch of the open step, with the network or from what is cached.

        Args:
            x: Input, `[B, C, ...]`.
            compute: Runs the network on `x`; called at most once, and only if needed.
            branch: Name of the guidance branch.
            model: Name of the network, where a pipeline has several.
            seam: What `x` and the output are.
            features: Signals that policies may ask for by name.
            rows: Runs the network on some samples of the batch, for per-sample decisions; or why
                that cannot be done, and then one sample that must be computed computes all.
            trial: Runs the network on other latents or at another time under this branch's
                condition, where the driver can; it then has `"trial"` among its capabilities.
            started: When the call began, by `time.perf_counter()`, if the network ran before this.

        Returns:
            The prediction, of the shape of `x`.

        Raises:
            ProtocolError: No step is open, or the branch was already answered.
            PolicyError: A policy raised, or returned something impossible.
        """
        self.ask(
            x,
            compute,
            branch=branch,
            model=model,
            seam=seam,
            features=features,
            rows=rows,
            trial=trial,
            started=started,
        )
        return self.answer()

    def ask(
        self,
        x: Tensor,
        compute: Callable[[], Tensor],
        *,
        branch: str = "cond",
        model: str = "model",
        seam: Seam = Seam.LATENT,
        features: Mapping[str, Callable[[], Tensor]] = NO_FEATURES,
        rows: RowCompute | str = WHOLE,
        trial: Trial | None = None,
        started: float | None = None,
    ) -> Call:
        """Decide one branch of the open step; `answer` must follow.

        For drivers that are inside the network when they ask, and that let it run on when
        `call.reused` is false: `compute` then returns what the network has produced by the time
        of `answer`. Arguments and errors as in `forward`, which is both verbs at once.

        Returns:
            The call, with its decision.
        """
        self._require(Stage.RUNNING, verb="forward")
        if self._asked is not None:
            raise ProtocolError(
                f"branch {branch!r} was asked in step {self._expected} before branch "
                f"{self._asked[0].branch!r} was answered; call answer() first"
            )
        self._refuse_second(branch)
        key = (model, branch, seam)
        network = Network(compute, lambda output: self._record(key, x, output))
        started = time.perf_counter() if started is None else started
        history = self._history.usable(key, x)
        if self.engine.per_sample:
            history = visible(history)
        states, revising = self.info.states, bool(self.engine.revising)
        counted = None if trial is None else partial(self._trial, trial, x.numel())
        decision = shared = self._known_decision(model, seam, history)
        answers = self._answers if revising else NO_ANSWERS
        if decision is None or (revising and history and decision is self._decision):
            kept = self._history.kept if self.engine.per_branch else NO_HISTORY
            undecided = Call(
                x,
                branch,
                model,
                seam,
                history,
                UNDECIDED,
                network,
                features,
                states,
                None,
                kept,
                counted,
                answers,
            )
            decision = self._decide(undecided, decision)
        if self._decision is None and decision.scope == "step":
            self._decision = decision
        if isinstance(decision, Reuse) and decision.mask is not None:
            if shared is not None:
                decision = fitted(decision, x)
            decision = settled(decision, x, rows if isinstance(rows, str) else None, self._decider)
        call = Call(
            x,
            branch,
            model,
            seam,
            history,
            decision,
            network,
            features,
            states,
            None,
            NO_HISTORY,
            counted,
            answers,
        )
        if isinstance(decision, Reuse) and decision.branch is not None:
            call = replace(call, history=self._lent(call, decision.branch))
        self._asked = call, started, None if isinstance(rows, str) else rows
        return call

    def answer(self) -> Tensor:
        """Answer the branch that was asked; the prediction, of the shape of its `x`.

        Raises:
            ProtocolError: Nothing was asked.
            PolicyError: A policy raised, or returned something impossible.
        """
        self._require(Stage.RUNNING, verb="answer")
        if self._asked is None:
            raise ProtocolError(f"answer without ask in step {self._expected}")
        (call, started, rows), self._asked = self._asked, None
        network, computed_rows = call.compute, None
        if self.engine.per_sample and call.reused and self._differs(call):
            output, computed_rows, reason = self._answer_rows(call, rows)
            computed = bool(computed_rows)
        else:
            output = self._answer(call, network)
            computed, reason = network.ran, network.reason
        decision, branch = call.decision, call.branch
        source = call.history[0].index if call.history and not computed else None
        lent = decision.branch if isinstance(decision, Reuse) and not computed else None
        self._answers[branch] = Answer(decision, output, computed, source)
        self._calls.append(
            CallTrace(
                self._expected,
                branch,
                call.model,
                computed,
                reason or decision.reason,
                source,
                time.perf_counter() - started,
                computed_rows,
                network.asked,
                network.trials,
                lent,
            )
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
        """Note a branch of the open step that the driver computed without asking any policy.

        For networks that are left alone: nothing of them is kept.

        Args:
            output: What the network predicted.
            branch: Name of the guidance branch.
            model: Name of the network.
            reason: Why nobody was asked, for the trace.
            started: When the call began, by `time.perf_counter()`.

        Raises:
            ProtocolError: No step is open, or the branch was already answered.
        """
        self._require(Stage.RUNNING, verb="note")
        self._refuse_second(branch)
        self.trace.count(output)
        self._answers[branch] = Answer(Compute(reason), output, True, None)
        seconds = time.perf_counter() - started
        self._calls.append(CallTrace(self._expected, branch, model, True, reason, None, seconds))

    def settle(self) -> Interval:
        """Close the forwards of this step; the interval that the solver must integrate.

        Raises:
            ProtocolError: No forward ran in this step.
            PolicyError: The adjusted interval is impossible, or the last one does not end at the
                schedule's end.
        """
        self._require(Stage.RUNNING, verb="settle")
        if not self._answers or self._step is None:
            raise ProtocolError(f"settle before any forward in step {self._expected}")
        if self._asked is not None:
            raise ProtocolError(
                f"settle in step {self._expected} before branch {self._asked[0].branch!r}, which "
                "was asked, was answered"
            )
        given = settled = self._step.interval
        if "adjust_interval" in self.engine.active:
            adjusted = self.engine.call_hook(
                "adjust_interval", self._where, self._step, self._answers
            )
            settled = given if adjusted is None else adjusted
        check_interval(self.info, given, settled, self._owner, self._where)
        self.trace.steps.append(
            StepTrace(settled.index, settled.start, settled.end, settled.time, tuple(self._calls))
        )
        self._stage = Stage.SETTLED
        return settled

    def end(self, sample: Tensor) -> None:
        """Close the step with the latents after the solver, `[B, C, ...]`."""
        self._require(Stage.SETTLED, verb="end")
        if "post_step" in self.engine.active:
            self.engine.call_hook("post_step", self._where, self._step, sample)
        self._expected += 1
        self._stage = Stage.BETWEEN

    # -------------------------------------------------------------- forward
    def _known_decision(
        self, model: str, seam: Seam, history: tuple[Evaluation, ...]
    ) -> Decision | None:
        """The decision where no policy is to be asked."""
        if "decide" not in self.engine.active:
            return UNASKED
        if not history:
            return COLD
        if self._decision is not None:
            return self._decision
        # one branch that was never computed makes the whole step compute
        kept = self._history.kept
        for branch in self._step.branches if self._step is not None else ():
            if (model, branch, seam) not in kept:
                return COLD
        return None

    def _lent(self, call: Call, branch: str) -> tuple[Evaluation, ...]:
        """The history of another branch that stands in for a call's own."""
        lent = self._history.kept.get((call.model, branch, call.seam), ())
        if self.engine.per_sample:
            lent = visible(lent)
        if not lent or not same_kind(lent[0].residual, call.x):
            has = kind_of(lent[0].residual) if lent else "nothing"
            raise PolicyError(
                f"{self._decider()} lets branch {branch!r} stand in for "
                f"{call.branch!r}, whose input is {kind_of(call.x)}, but {has} is remembered of it "
                f"in {call.model!r}; branches that stand in are called before, on alike inputs"
            )
        return lent

    def _decide(self, call: Call, shared: Decision | None = None) -> Decision:
        if shared is None:
            decision: Decision = self.engine.call_hook("decide", self._where, self._step, call)
        else:
            decision = self.engine.revise(shared, self._where, self._step, call)
        if not isinstance(decision, Decision):
            raise PolicyError(
                f"{self._owner('decide')} returned {decision!r} from decide "
                f"{self._where()}; return Compute(reason), Reuse(reason) or None"
            )
        masked = isinstance(decision, Reuse) and decision.mask is not None
        if masked and not self.engine.per_sample:
            raise PolicyError(
                f"{self._decider()} decided for each sample, but declares no per_sample = True; "
                "declare it, or return Reuse without a mask"
            )
        return decision

    def _decider(self) -> str:
        return f"{self._owner('decide')} {self._where()}"

    def _differs(self, call: Call) -> bool:
        """Whether the samples of a reused call must be answered apart."""
        masked = isinstance(call.decision, Reuse) and call.decision.mask is not None
        return masked or diverged(self._source_of(call))

    def _source_of(self, call: Call) -> tuple[Evaluation, ...]:
        """What a reused call is answered from, evaluations of part of a batch included."""
        lent = call.decision.branch if isinstance(call.decision, Reuse) else None
        return self._history.kept[call.model, lent or call.branch, call.seam]

    def _answer_rows(
        self, call: Call, run: RowCompute | None
    ) -> tuple[Tensor, tuple[int, ...], str]:
        """Answer a call sample by sample; the output, the samples computed, and why if unasked."""
        key, batch = (call.model, call.branch, call.seam), call.x.shape[0]
        history = self._source_of(call)
        mask = call.decision.mask if isinstance(call.decision, Reuse) else None
        assert mask is None or isinstance(mask, tuple)
        absent = tuple(row for row in range(batch) if mask is not None and not mask[row])
        output, done, why = torch.empty_like(call.x), list(absent), ""

        def answer(
            decision: Decision, rows: tuple[int, ...], own: tuple[Evaluation, ...]
        ) -> Network:
            index = torch.tensor(rows, device=call.x.device)
            x = call.x.index_select(0, index)
            network = Network(
                (lambda: run(index)) if run is not None else call.compute,
                lambda out: self._record(key, x, out, rows),
            )
            one = replace(
                call,
                x=x,
                history=own,
                decision=decision,
                compute=network,
                rows=rows,
                run_trial=None,
            )
            output.index_copy_(0, index, self._answer(one, network))
            return network

        if absent:
            decided = Compute(call.decision.reason, call.decision.scope)
            answer(decided, absent, part(history, absent, batch))
        decided_reuse = Reuse(call.decision.reason, call.decision.scope)
        for group in groups(history, [row for row in range(batch) if row not in absent], batch):
            network = answer(decided_reuse, group.rows, group.history)
            if network.ran:
                done.extend(group.rows)
                why = network.reason
        return output, tuple(sorted(done)), why

    def _answer(self, call: Call, network: Network) -> Tensor:
        if "forward" in self.engine.active:
            output: Tensor = self.engine.call_hook("forward", self._where, self._step, call)
        else:
            output = call.x + call.history[0].residual if call.reused else network()
        corrects = self.engine.corrects_computed
        check_output(call, network, output, corrects, self._owner, self._where)
        if network.ran:
            return output
        # one reduction without a temporary, which NaN and infinity both survive; reading it now
        # would wait for the device, and one rank cannot compute alone: see Trace
        if self.engine.static or self.engine.agrees:
            place, extremes = (self._expected, call.branch), self.trace.extremes
            found = torch.aminmax(output)
            extremes[place] = (*extremes[place], *found) if place in extremes else found
        elif not math.isfinite(float(torch.linalg.vector_norm(output, ord=torch.inf))):
            network.reason = "reused output was not finite"
            return network()
        return output

    def _record(
        self, key: Key, x: Tensor, output: Tensor, rows: tuple[int, ...] | None = None
    ) -> None:
        trace, history = self.trace, self._history
        trace.count(x)
        if self.engine.needs.evaluations == 0 or self._step is None:
            return
        if not same_kind(output, x):
            raise ProtocolError(
                f"the network returned {kind_of(output)} for an input of {kind_of(x)} "
                f"{self._where()}: a residual needs equal shapes and types; convert in compute"
            )
        if rows is None:
            history.record(key, self._step.interval, x, output)
        else:
            history.record_rows(key, self._step.interval, x, output, rows)
        trace.history_bytes = max(trace.history_bytes, history.bytes)

    def _trial(self, run: Trial, whole: int, x: Tensor, at: float | None) -> Tensor:
        started = time.perf_counter()
        output = run(x, at)
        self.trace.trial_seconds += time.perf_counter() - started
        self.trace.trial_calls += 1
        self.trace.trial_share += x.numel() / whole
        self.trace.trial_samples += x.shape[0] if x.ndim else 1
        return output

    # ------------------------------------------------------------- internals
    def _owner(self, hook: str) -> str:
        return " / ".join(repr(policy) for policy in self.engine.implementers(hook)) or "the driver"

    def _where(self) -> str:
        request = f"of request {self.info.request_id!r}"
        return f"at step {self._expected} {request}" if self._step is not None else request

    def _refuse_second(self, branch: str) -> None:
        if branch in self._answers:
            raise ProtocolError(
                f"branch {branch!r} was already answered in step {self._expected}; "
                "give every evaluation of a step its own branch name"
            )

    def _require(self, stage: Stage, verb: str) -> None:
        if self._stage is not stage:
            raise ProtocolError(
                f"{verb} is not allowed now: the session of request {self.info.request_id!r} is "
                f"{self._stage.value}, it must be {stage.value}"
            )
