"""`ConstantBranches`: modules that are given the same at every step run once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from erta_framework import Policy, Seam, Step, Traits, hookimpl
from erta_framework.errors import PolicyError
from erta_framework.modules import Action, Ask, Named, Parts, Place, ReuseKept, Selection, Visit
from erta_policies.constant_branches._inputs import Inputs

MISSES = 2
"""After so many changes in a row a module is left alone for the rest of the request."""


@dataclass(slots=True)
class Seen:
    """What is known of one module in one branch.

    Attributes:
        inputs: What it was given when its output was kept.
        step: The step of its last visit.
        misses: How often in a row it was given something else.
    """

    inputs: Inputs | None = None
    step: int = -1
    misses: int = 0

    @property
    def varies(self) -> bool:
        """Whether it is left alone."""
        return self.misses >= MISSES


class ConstantBranches(Policy):
    """Computes modules once whose inputs do not change over the steps; nothing is approximated.

    Such are the projection of the text, the keys and values that cross-attention makes of it, and
    the embedding of a control video. A module runs unless it is given exactly what it was given
    when its output was kept, with the same weights. So the samples are those of the untouched
    pipeline, bit for bit. A module that is given something else twice in a row is left alone for
    the rest of the request; so is one that the network visits twice in a call.

    With `compare="memory"` inputs are the same if they are the same tensors, or the same views of
    the same tensors, and nobody wrote into them; nothing is read back from the device. Equal
    values in other tensors do not count. With `compare="values"` they do, at the cost of a
    comparison and of waiting for the device at each visit.

    A module must be a function of its inputs and its weights. One that is in training mode, or has
    a part that is, runs. Not seen are writes that PyTorch does not count, such as through
    `tensor.data`, and other state, such as a scale of LoRA that is changed during a request.

    Source: ours.

    Attributes:
        modules: A regular expression that the paths of the modules match as a whole, such as
            `"context_embedder|.*[.]attn2[.]to_[kv]"`.
        compare: What tells that inputs are the same.

    Raises:
        PolicyError: The expression cannot be read, or there is no such comparison.

    Example:
        >>> ConstantBranches(modules="context_embedder").selects
        (Named(path='context_embedder'),)
    """

    modules: str
    compare: Literal["memory", "values"] = "memory"

    def __post_init__(self) -> None:
        if self.compare not in ("memory", "values"):
            raise PolicyError(
                f"ConstantBranches cannot compare {self.compare!r}; it is 'memory' or 'values'"
            )
        self.selects  # noqa: B018 - refuses what is no regular expression

    @property
    def traits(self) -> Traits:
        return Traits(static=self.compare == "memory", seams=frozenset({Seam.MODULE}))

    @property
    def selects(self) -> Sequence[Selection]:
        """The modules."""
        return (Named(path=self.modules),)

    @hookimpl
    def assign(self, step: Step, call: Parts) -> Mapping[Place, Action]:
        if call.rows is not None:  # some samples are other inputs, and say nothing of the whole
            return {}
        states, ask = call.states, Ask(self._answer)
        return {
            place: ask
            for place in call.sites
            if not states.get(self, call.site_of(place), Seen).varies
        }

    def _answer(self, visit: Visit) -> Any:
        seen, module, given = visit.state_of(self, Seen), visit.module, (visit.args, visit.kwargs)
        again, seen.step = seen.step == visit.step.index, visit.step.index
        if again:
            seen.inputs, seen.misses = None, MISSES
        if seen.varies or any(part.training for part in module.modules()):
            return visit.run()
        if seen.inputs is not None and visit.kept and seen.inputs.is_same(module, *given):
            seen.misses = 0
            return visit.reuse(ReuseKept())
        seen.misses += seen.inputs is not None
        if seen.varies:
            seen.inputs = None
            return visit.run()
        seen.inputs = Inputs.of(module, *given, copies=self.compare == "values")
        return visit.run(keep="output")
