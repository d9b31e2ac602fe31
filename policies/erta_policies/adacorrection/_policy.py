"""`AdaCorrection`: where another policy reuses a module, its answer is blended with a fresh one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from erta_framework import Policy, Profiler, Seam, SessionInfo, Step, Traits, hookimpl
from erta_framework.errors import PolicyError
from erta_framework.modules import (
    Action,
    Ask,
    Keep,
    Parts,
    Place,
    ReuseKept,
    Selection,
    Skip,
    Visit,
    list_tensors,
)
from erta_framework.plugins import find_hooks, flatten
from erta_policies.adacorrection._weights import Mode, Offsets, Weights
from erta_policies.shared import blend, call_hook

ANSWERED = frozenset({"assign", "on_session_start"})
"""The hooks of the policy inside that are called."""


class AdaCorrection(Policy):
    """Blends what a policy reuses inside the network with a fresh output, by how much has changed.

    It stands around a policy that keeps and reuses modules, and answers for its places. Where that
    policy runs a module, the module runs. Where it reuses one, the input of the module is compared
    with that at which the output was kept, sample by sample. From the offset S comes the weight of
    a fresh output, `w = clip(gamma * S / S_ref, 0, 1)`:

    * below `low` the answer of the policy stands, and the module does not run;
    * above `high` the module runs, and its output is taken and kept;
    * between, the module runs, `(1 - w) * reused + w * fresh` is taken, and the fresh one is kept.

    S_ref is the running median of S at the steps at which the policy runs the module by itself. So
    `gamma=1` weighs fully what is as bad as what makes the policy give up. Before there is one, the
    policy is believed.

    What runs counts as work, so a budget of the policy inside is not kept. Beside each kept output
    its input is kept. Where several modules are one place, such as a cut, the input of the network
    is compared. Where a module has no row for each sample, the largest weight holds for all.

    Source: AdaCorrection, arXiv 2602.13357. The published method is `mode="paper"`:
    `S = (mean |h - h'|)^2 + spread * mean std(h)`, `w = clip(gamma * S, 0, 1)`, and the blend is
    kept. It runs every module at every step, so it never saves time, and wherever tokens have a
    standard deviation of 1 or more it is the uncached network. The relative offset, S_ref, and the
    two bounds are ours, and so is that each sample has its own weight.

    Attributes:
        policy: The policy inside, such as `at`, `fora` at level `modules`, `pab` or `deepcache`.
        gamma: Factor of the offset; 0 leaves the policy as it is.
        spread: Weight of the change of the spread over channels in S.
        low: Weight below which nothing runs.
        high: Weight above which the fresh output is taken as it is.
        reference: S_ref, where a number is to stand instead of the running median.
        mode: `relative`, ours, or `paper`.

    Raises:
        PolicyError: The policy inside stands for several or answers for no places, a setting is out
            of range, or `mode="paper"` has a reference.

    Example:
        >>> from erta_policies.pab import PAB
        >>> AdaCorrection(policy=PAB(spatial=3), gamma=0.5).selects[0].kind
        ('attention',)
    """

    policy: Policy
    gamma: float = 1.0
    spread: float = 1.0
    low: float = 0.1
    high: float = 0.9
    reference: float | None = None
    mode: Mode = "relative"

    def __post_init__(self) -> None:
        parts = flatten([self.policy])
        hooks = frozenset().union(*(find_hooks(type(part)) for part in parts))
        if len(parts) != 1 or "assign" not in hooks or hooks - ANSWERED:
            raise PolicyError(
                f"adacorrection got {self.policy!r}, which "
                + ("stands for several policies" if len(parts) != 1 else "does more or less than ")
                + ("" if len(parts) != 1 else "answer for places inside the network")
                + "; give it one such as at, pab or deepcache, and list the others beside it"
            )
        _ = self._weights  # checks the settings

    @property
    def _weights(self) -> Weights:
        return Weights(
            gamma=self.gamma,
            spread=self.spread,
            low=self.low,
            high=self.high,
            reference=self.reference,
            mode=self.mode,
        )

    # ----------------------------------------------------------------- the policy inside
    def parts(self) -> Sequence[Policy]:
        """Itself, around the one part of a recipe."""
        (inside,) = flatten([self.policy])
        return (self if inside is self.policy else dataclasses.replace(self, policy=inside),)

    @property
    def traits(self) -> Traits:
        (inside,) = flatten([self.policy])
        own = inside.traits
        seams = own.seams | {Seam.MODULE}
        agrees = own.static or own.agrees_inside
        return dataclasses.replace(own, static=False, agrees_inside=agrees, seams=seams)

    @property
    def selects(self) -> Sequence[Selection]:
        """The places of the policy inside."""
        (inside,) = flatten([self.policy])
        return inside.selects

    def keeps(self) -> int:
        (inside,) = flatten([self.policy])
        return inside.keeps()

    def keeps_inputs(self) -> bool:
        return True

    def calibrator(self) -> Profiler | None:
        return self.policy.calibrator()

    def prepare(self) -> None:
        self.policy.prepare()

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        if hasattr(self.policy, "on_session_start"):
            call_hook(self.policy, "on_session_start", session=session)

    # -------------------------------------------------------------------------- the plan
    @hookimpl
    def assign(self, step: Step, call: Parts) -> Mapping[Place, Action]:
        asked: Mapping[Place, Action] = call_hook(self.policy, "assign", step=step, call=call) or {}
        plan = {place: self._correct(place, action, step, call) for place, action in asked.items()}
        # where a place of several modules may run, so do those before its last
        running = {
            path
            for place, action in plan.items()
            if isinstance(action, Ask)
            for path in place.modules[:-1]
        }
        return {
            place: action
            for place, action in plan.items()
            if not (isinstance(action, Skip) and place.modules[-1] in running)
        }

    def _correct(self, place: Place, action: Action, step: Step, call: Parts) -> Action:
        """The action of a place, from what the policy inside assigned."""
        if isinstance(action, Skip):
            return action
        if not isinstance(action, Keep | ReuseKept | Ask):
            raise PolicyError(
                f"adacorrection corrects outputs that are kept and reused, and {self.policy!r} "
                f"assigned {type(action).__name__} to {place}; use that policy alone"
            )
        if isinstance(action, ReuseKept) and len(place.modules) > 1:
            # decided before the first of them is reached
            offsets = call.states.get(self, call.site_of(place), Offsets)
            found = self._weights.find(call.x, call.kept_input(place), offsets, call)
            weights = self._weights.bound(
                call.agree_each(found, f"at {place} in step {step.index}")
            )
            if self.mode != "paper" and not any(weights):
                return action
            return Ask(partial(self._answer, action, weights))
        return Ask(partial(self._answer, action, None))

    # -------------------------------------------------------------------------- the visit
    def _answer(
        self, action: Keep | ReuseKept | Ask, known: list[float] | None, visit: Visit
    ) -> Any:
        """The output of a place: that of the policy inside, a fresh one, or a blend of both."""
        if isinstance(action, Ask):
            output = action.answer(visit)
            if visit.reassigned:
                raise PolicyError(
                    f"{self.policy!r} decides at {visit.place} about other places, which "
                    "adacorrection does not see; use that policy alone"
                )
            if visit.ran and not visit.ran_whole:
                raise PolicyError(
                    f"{self.policy!r} ran {visit.place} in part, and a module runs once; use that "
                    "policy alone, or if it decides for each sample, give it per_sample=False"
                )
        elif isinstance(action, Keep):
            output = visit.run(keep=action.of)
        else:
            output = visit.reuse(action)
        call = visit.call
        x, kept = visit.x if len(visit.place.modules) == 1 else call.x, visit.kept_input
        offsets = visit.state_of(self, Offsets)
        if visit.ran:
            self._weights.note(x, kept, offsets, call)
            visit.keep_input(x)
            return output
        if known is None:
            found = self._weights.find(x, kept, offsets, call)
            known = self._weights.bound(visit.agree_each(found))
        if self.mode == "relative" and not any(known):
            return output
        return self._blend(action, output, known, x, visit)

    def _blend(
        self, action: Action, stale: Any, weights: Sequence[float], x: Tensor, visit: Visit
    ) -> Any:
        """Run the module, blend, and keep what ran of the samples that wanted it."""
        of = next(iter(visit.kept[0].tensors)).partition(".")[0]
        own = isinstance(action, Ask) and of not in ("output", "residual")
        fresh = self._run_again(action, visit) if own else visit.run()
        pairs = list(zip(list_tensors(stale), list_tensors(fresh), strict=True))
        if any(new.shape[0] != visit.call.width for _, new in pairs):
            weights = [max(weights)]
        output = visit.build([blend(old, new, weights) for old, new in pairs])
        wanting = [row for row, weight in enumerate(weights) if weight]
        if wanting and not own:
            visit.keep_output(
                output if self.mode == "paper" else fresh,
                of="output" if of == "output" else "residual",
                rows=wanting if len(wanting) < len(weights) else None,
            )
        if wanting:
            visit.keep_input(x)
        return output

    def _run_again(self, action: Action, visit: Visit) -> Any:
        """The output of a policy that keeps tensors of its own, and renews them where it runs."""
        assert isinstance(action, Ask)
        visit.call.forget(visit.place)
        output = action.answer(visit)
        if not visit.ran_whole or self.mode == "paper":
            raise PolicyError(
                f"{self.policy!r} keeps tensors of its own at {visit.place}, which adacorrection "
                "can renew only where that policy runs what it has nothing of, and not with "
                "mode='paper'; use that policy alone"
            )
        return output
