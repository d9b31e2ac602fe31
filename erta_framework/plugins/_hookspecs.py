"""The nine hooks: the manual of erta_framework.

One step, as nested hook calls:

* `pre_step(step)`
* for each guidance branch:
    * `decide(step, call)`, once a step unless a decision says `scope="branch"`;
      skipped when some branch has nothing usable in its history
    * `assign(step, call)`, where a network runs whose modules a policy selects: what each of them
      does
    * `forward(step, call)`: predictors answer, then core (what it reuses, or the network);
      wrappers correct and observe
* `adjust_interval(step, answers)`
* guidance combines the branches
* `adjust_prediction(step, guided)`
* the solver integrates over the settled interval
* `post_step(step, sample)`

`on_session_start(session)` comes before the first step and `on_session_end(session, error)` after
the last, also after an exception. Policies listed first are called first. A hook implementation
may take any subset of the arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from torch import Tensor

    from erta_framework.calibration import Profile
    from erta_framework.modules import Action, Parts, Place
    from erta_framework.session import (
        Answer,
        Call,
        Decision,
        Guided,
        Interval,
        SessionInfo,
        Step,
    )

PROJECT = "erta_framework"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class HookSpecs:
    """Specifications of the nine hooks; a policy implements any of them."""

    @hookspec
    def on_session_start(self, session: SessionInfo) -> None:
        """Called once when a request begins, before the first step.

        The place to check a profile against the run and to put tables on the device. Every
        policy is called; results are ignored.
        """

    @hookspec
    def pre_step(self, step: Step) -> None:
        """The pre-step extension point: called when a step begins, before any forward.

        Every policy is called; results are ignored.
        """

    @hookspec(firstresult=True)
    def decide(self, step: Step, call: Call) -> Decision | None:
        """Whether to run the network on this step: `Compute(reason)`, `Reuse(reason)` or None.

        The first policy that returns a decision decides. If all return None, the step is computed.
        A wrapper sees the decision of the policies that it encloses, and may return another.
        """

    @hookspec
    def assign(self, step: Step, call: Parts) -> Mapping[Place, Action] | None:
        """What the places inside the network do in this call: a mapping from places to actions.

        Called once for each network call that runs, of every policy that selects places, with the
        places that are its own in `call.sites`. A place that is left out runs. A policy that
        implements this says what it owns in `selects`.
        """

    @hookspec(firstresult=True)
    def forward(self, step: Step, call: Call) -> Tensor | None:
        """The forward extension point: the output of one branch, `[B, C, ...]`.

        A predictor returns a tensor when `call.reused`, else None. If all return None, the output
        is the network's, or on a reused call `x + residual` of a flow and the newest output of
        networks that predict no velocity (`SessionInfo.reused`). Wrappers
        (`@hookimpl(wrapper=True)`) correct reused outputs and observe. What they return is never
        stored in the history: the raw output was recorded when it was computed.
        """

    @hookspec(firstresult=True)
    def adjust_interval(self, step: Step, answers: Mapping[str, Answer]) -> Interval | None:
        """How far to integrate; called after all branches and before the solver.

        At most one policy of an engine may implement it. It may move `end` and `end_time`; the
        last interval must end where the schedule ends.
        """

    @hookspec(firstresult=True)
    def adjust_prediction(self, step: Step, guided: Guided) -> Tensor | None:
        """The guided prediction, as the solver is to get it; called once a step.

        If all return None, it stays as it is. Wrappers (`@hookimpl(wrapper=True)`) change what
        those that they enclose return. It is called at computed and at reused steps, and what it
        returns is never stored in the history. A driver that does not hand the prediction over,
        and so offers no `GUIDED`, is refused.
        """

    @hookspec
    def post_step(self, step: Step, sample: Tensor) -> None:
        """The post-step extension point: called with the latents after the solver's step.

        Every policy is called; results are ignored. The latents must not be written into.
        """

    @hookspec
    def on_session_end(self, session: SessionInfo, error: BaseException | None) -> Profile | None:
        """Called once when a request ends, also when it failed (`error` is then the reason).

        A profiler returns the statistics of this request as a `Profile`; they are found in
        `Session.emitted`. Every policy is called.
        """


HOOKS = tuple(name for name in vars(HookSpecs) if not name.startswith("_"))
