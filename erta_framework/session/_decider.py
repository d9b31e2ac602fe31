"""Decides the calls of a step: once for all branches, or for each where a policy says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from erta_framework.errors import PolicyError
from erta_framework.session._call import Call, Memory
from erta_framework.session._computation import Computation
from erta_framework.session._decisions import Answer, Compute, Decision, Reuse
from erta_framework.session._evaluation import Evaluations
from erta_framework.session._history import History, is_same_kind
from erta_framework.session._selection import drop_partial, fit_mask, resolve_mask
from erta_framework.session._site import Site, make_site
from erta_framework.session._step import Step
from erta_framework.session._validation import describe_tensor
from erta_framework.session._where import Where

if TYPE_CHECKING:
    from erta_framework.plugins import Engine

NO_ANSWERS: Mapping[str, Answer] = {}
UNDECIDED = Compute("undecided")
UNASKED = Compute("default")
COLD = Compute("cold")


class Decider:
    """Turns a call of the driver into a `Call` with its decision.

    A decision with scope `"step"` is shared by the branches of the step, apart for each place
    inside the network.
    """

    def __init__(self, engine: Engine, history: History, where: Where) -> None:
        self._engine, self._history, self._where = engine, history, where
        traits = engine.traits
        self._asks = "decide" in engine.active
        self._per_sample = traits.decides == "sample"
        self._revises = traits.sees_every_branch
        self._alone = Memory(where.info.states)
        self._beside = (
            Memory(where.info.states, history.kept) if traits.reads_peers else self._alone
        )
        self._step: Step | None = None
        self._shared: dict[str, Decision] = {}

    def begin(self, step: Step) -> None:
        """Forget the decisions of the step before."""
        self._step = step
        self._shared.clear()

    def decide(
        self, site: Site, x: Tensor, compute: Computation, answers: Mapping[str, Answer]
    ) -> Call:
        """The call with its decision.

        Args:
            site: Where the call is.
            x: The input, `[B, C, ...]`.
            compute: Runs the network.
            answers: Answers of the branches of this step that came before.

        Raises:
            PolicyError: A policy raised, or decided something impossible.
        """
        history = self._history.usable(site, x)
        if self._per_sample:
            history = drop_partial(history)
        seen = answers if self._revises else NO_ANSWERS
        shared = self._shared.get(site.path)
        decision = known = self._known(site, history, shared)
        if decision is None or (self._revises and history and decision is shared):
            asked = Call(x, site, history, UNDECIDED, compute, None, seen, self._beside)
            decision = self._ask(asked, decision)
        if shared is None and decision.scope == "step":
            self._shared[site.path] = decision
        if isinstance(decision, Reuse) and decision.mask is not None:
            if known is not None:
                decision = fit_mask(decision, x)
            decision = resolve_mask(
                decision, x, lambda: compute.network.undivided, self._where.decider
            )
        call = Call(x, site, history, decision, compute, None, seen, self._alone)
        if isinstance(decision, Reuse) and decision.branch is not None:
            call = replace(call, history=self._lend(call, decision.branch))
        return call

    def _known(self, site: Site, history: Evaluations, shared: Decision | None) -> Decision | None:
        """The decision where no policy has a say: nobody decides, or nothing can be reused."""
        if not self._asks:
            return UNASKED
        if not history:
            return COLD
        if shared is not None:
            return shared
        # one branch that was never computed makes the whole step compute
        for branch in self._step.branches if self._step is not None else ():
            if make_site(site.model, branch, site.path) not in self._history.kept:
                return COLD
        return None

    def _ask(self, call: Call, shared: Decision | None) -> Decision:
        if shared is None:
            decision: Decision = self._engine.call_hook("decide", self._where, self._step, call)
        else:
            decision = self._engine.revise(shared, self._where, self._step, call)
        if not isinstance(decision, Decision):
            raise PolicyError(
                f"{self._where.owner('decide')} returned {decision!r} from decide "
                f"{self._where()}; return Compute(reason), Reuse(reason) or None"
            )
        if isinstance(decision, Reuse) and decision.mask is not None and not self._per_sample:
            raise PolicyError(
                f"{self._where.decider()} decided for each sample, but declares no "
                'traits = Traits(decides="sample"); declare it, or return Reuse without a mask'
            )
        if decision.scope == "branch" and self._engine.traits.decides == "step":
            raise PolicyError(
                f"{self._where.decider()} decided for branch {call.branch!r} alone, but declares "
                'no traits = Traits(decides="branch"); declare it, or leave out scope="branch"'
            )
        return decision

    def _lend(self, call: Call, branch: str) -> Evaluations:
        """The history of another branch, which the decision says to answer from."""
        lent = self._history.kept.get(Site(call.model, branch, call.site.path), ())
        if self._per_sample:
            lent = drop_partial(lent)
        if not lent or not is_same_kind(lent[0].residual, call.x):
            has = describe_tensor(lent[0].residual) if lent else "nothing"
            raise PolicyError(
                f"{self._where.decider()} lets branch {branch!r} stand in for "
                f"{call.branch!r}, whose input is {describe_tensor(call.x)}, but {has} is "
                f"remembered of it in {call.model!r}; branches that stand in are called before, on "
                "alike inputs"
            )
        return lent
