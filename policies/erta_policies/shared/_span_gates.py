"""`SpanGate` and `SpanGates`: spans of blocks that run or not by what the blocks before them do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from erta_framework import Policy, Seam, Step, Traits, hookimpl
from erta_framework.errors import CapabilityError, PolicyError
from erta_framework.metrics import relative_l1
from erta_framework.modules import Action, Ask, Keep, Parts, Place, ReuseKept, Select, Visit


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanGate:
    """Blocks of which the first decide whether those behind them run.

    Attributes:
        blocks: The blocks, of which the first `head` and the last `tail` always run.
        threshold: Relative L1 change at which all run; 0 or less never reuses.
        head: Blocks whose residual is compared, Fn of DBCache.
        tail: Blocks that always run at the end, Bn of DBCache.
        rows: Tokens to which the residual is pooled; None for as many as `pool` leaves.
        pool: Side of the squares of tokens and channels that are averaged, where `rows` is None.
        streams: Whether the residual of the first stream is compared, such as the image tokens, or
            those of all streams behind each other.
        follows: Whether it reuses, without a test, wherever the gate before it does.

    Raises:
        PolicyError: A setting is out of range.

    Example:
        >>> [s.pick for s in SpanGate(blocks=Select(kind=("block",)), threshold=0.1).selects]
        ['0', '1:']
    """

    blocks: Select
    threshold: float
    head: int = 1
    tail: int = 0
    rows: int | None = None
    pool: int = 1
    streams: Literal["first", "all"] = "first"
    follows: bool = False

    def __post_init__(self) -> None:
        if self.head < 1 or self.tail < 0:
            raise PolicyError(
                f"a gate has {self.head} blocks before its span and {self.tail} behind; it needs 1 "
                "or more before, which decide, and 0 or more behind"
            )
        if self.pool < 1 or (self.rows is not None and self.rows < 1):
            raise PolicyError(f"a gate pools by {self.pool} to {self.rows} rows; give 1 or more")
        if self.blocks.kind != ("block",) or self.blocks.span:
            raise PolicyError(f"a gate is made of blocks, one by one, and not of {self.blocks}")
        if self.blocks.pick != ":":
            raise PolicyError(f"a gate picks its blocks itself, and {self.blocks} sets pick")

    @property
    def selects(self) -> tuple[Select, ...]:
        """The first block and the last one of those that decide, then the span behind them."""
        deciding = dict.fromkeys(("0", str(self.head - 1)))
        end = f"-{self.tail}" if self.tail else ""
        span = replace(self.blocks, pick=f"{self.head}:{end}", span=True, by_list=True)
        return (*(replace(self.blocks, pick=pick) for pick in deciding), span)

    def measure(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Tensor:
        """The pooled residual of the blocks that decide, `[B, rows, columns]`.

        Args:
            before: The streams that entered the first of them, by name, in the order of its
                parameters.
            after: Those that left the last one, in the order of its output.
        """
        missing = [name for name in after if name not in before]
        if missing:
            raise CapabilityError(
                f"the streams {', '.join(after)} leave the blocks that decide, and "
                f"{', '.join(before)} entered them; take as many blocks of one list"
            )
        first = next(name for name in before if name in after)
        chosen = [first] if self.streams == "first" else list(after)
        residuals = [after[name] - before[name] for name in chosen]
        if any(one.ndim != 3 or one.shape[2] != residuals[0].shape[2] for one in residuals):
            found = zip(chosen, residuals, strict=True)
            shapes = ", ".join(f"{name} {tuple(one.shape)}" for name, one in found)
            raise CapabilityError(
                f"a gate compares tokens [B, L, C] of one width, and these blocks give {shapes}; "
                "give it other blocks, or compare the first stream only"
            )
        residual = torch.cat(residuals, dim=1)
        side = self.pool if self.rows is None else residual.shape[1] // self.rows
        return pool_squares(residual, side)


def pool_squares(residual: Tensor, side: int) -> Tensor:
    """Means over squares of tokens and channels, the pooled features of H2-Cache.

    What does not fill a square is left out. A side is at least 1 and at most the tensor's own.

    Args:
        residual: `[B, L, C]`.
        side: Of the squares.

    Example:
        >>> pool_squares(torch.ones(1, 5, 4), 2).shape
        torch.Size([1, 2, 2])
    """
    side = min(max(side, 1), *residual.shape[1:])
    if side == 1:
        return residual
    return functional.avg_pool2d(residual.unsqueeze(1), side).squeeze(1)


Gated = tuple[list[Place], list[Place]]
"""The first and last block that decide, which may be one, and the spans behind them."""


class SpanGates(Policy):
    """Base of caches that leave out a span of blocks while those before it change little.

    Each gate runs its first blocks and compares their residual with that of the last step at which
    its span ran. Below the threshold the span is left out, and what it added then is added again;
    a span over several lists of blocks keeps what each list added. Otherwise it runs, and both are
    kept anew. A subclass has these as settings, and gives the gates.

    Attributes:
        warmup: First steps at which every block runs.
        max_consecutive: Steps after which a span runs again; None for no limit.
        each_branch: Whether every guidance branch decides for itself; else the first one does.

    Raises:
        PolicyError: A setting is out of range.
    """

    warmup: int = 0
    max_consecutive: int | None = None
    each_branch: bool = True

    traits = Traits(seams=frozenset({Seam.MODULE}))

    def __post_init__(self) -> None:
        if self.warmup < 0 or (self.max_consecutive is not None and self.max_consecutive < 1):
            raise PolicyError(
                f"{self.name} has warmup={self.warmup} and max_consecutive={self.max_consecutive}; "
                "they must be at least 0 and 1"
            )
        _ = self.gates  # checks the settings of each

    @property
    def gates(self) -> Sequence[SpanGate]:
        """The gates, in the order of execution."""
        raise NotImplementedError(f"{type(self).__name__} has no gates")

    @property
    def selects(self) -> Sequence[Select]:
        """The blocks of all gates."""
        return [select for gate in self.gates for select in gate.selects]

    @hookimpl
    def assign(self, step: Step, call: Parts) -> Mapping[Place, Action]:
        plan: dict[Place, Action] = {}
        found, hits = split_gates(call.sites), self._decided(step, call)
        for number, (head, _) in enumerate(found):
            entered: dict[str, Tensor] = {}
            plan[head[0]] = Ask(partial(self._enter, entered))
            plan[head[-1]] = Ask(partial(self._decide, found, number, hits, entered))
        return plan

    def _decided(self, step: Step, call: Parts) -> dict[int, bool]:
        """What was decided in this step already, by the number of the gate."""
        if self.each_branch:
            return {}
        outcomes = step.session.state_of(self, dict[str, tuple[int, dict[int, bool]]])
        if outcomes.get(call.model, (-1, {}))[0] != step.index:
            outcomes[call.model] = step.index, {}
        return outcomes[call.model][1]

    def _enter(self, entered: dict[str, Tensor], visit: Visit) -> Any:
        """Note what enters the blocks that decide."""
        entered.update(visit.streams)
        return visit.run()

    def _decide(
        self,
        found: Sequence[Gated],
        number: int,
        hits: dict[int, bool],
        entered: Mapping[str, Tensor],
        visit: Visit,
    ) -> Any:
        """Run the last block that decides, and say what becomes of the span behind it."""
        gate, spans = self.gates[number], found[number][1]
        before = entered or visit.streams
        output = visit.run()
        # a gate that follows must be able to, so that it is never asked alone
        following = takewhile(lambda k: self.gates[k].follows, range(number + 1, len(found)))
        reuses = self._may_reuse(visit, [s for k in (number, *following) for s in found[k][1]])
        forced = hits.get(number, gate.follows and hits.get(number - 1))
        feature = None
        if reuses and not forced:
            feature = gate.measure(before, visit.name_streams(output))
            reuses = number not in hits and self._is_close(gate, feature, visit)
        hits.setdefault(number, reuses)
        for span in spans:
            visit.assign(span, ReuseKept(of="residual") if reuses else Keep("residual"))
        if not reuses:
            if feature is None:
                feature = gate.measure(before, visit.name_streams(output))
            visit.keep(feature)
        return output

    def _may_reuse(self, visit: Visit, spans: Sequence[Place]) -> bool:
        """Whether these are kept, of all samples, and not for too long."""
        ages = [visit.call.age(span) for span in spans]
        most = self.max_consecutive
        return visit.step.index >= self.warmup and all(
            age is not None and (most is None or age <= most) for age in ages
        )

    def _is_close(self, gate: SpanGate, feature: Tensor, visit: Visit) -> bool:
        """Whether the residual has hardly changed; NaN has."""
        known = [one for one in visit.features if one.shape == feature.shape]
        if not known:
            return False
        return visit.agree(relative_l1(feature, known[0], per_sample=False)) < gate.threshold


def split_gates(places: Sequence[Place]) -> list[Gated]:
    """The places of each gate."""
    found: list[Gated] = []
    for place in places:
        if place.kind != "span" and (not found or found[-1][1]):
            found.append(([], []))
        found[-1][place.kind == "span"].append(place)
    return found
