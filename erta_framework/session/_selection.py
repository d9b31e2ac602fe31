"""Per-sample decisions: histories whose samples were computed at different steps.

A policy that declares `per_sample` may reuse some samples of a batch and compute the others. From
then on the samples of one evaluation carry stamps of their own. A reused answer is made for one
group of equal stamps after the other, so that a predictor always sees plain numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from erta_framework.errors import PolicyError
from erta_framework.session._records import Compute, Decision, Evaluation, Reuse, Stamp

RowCompute = Callable[[Tensor], Tensor]
"""Runs the network on the samples whose places are given, `[R]`; returns `[R, C, ...]`."""

Evaluations = tuple[Evaluation, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Samples whose kept evaluations were computed at the same steps."""

    rows: tuple[int, ...]
    history: Evaluations


def settled(decision: Reuse, x: Tensor, whole: str | None, owner: Callable[[], str]) -> Decision:
    """A masked decision made plain where the samples agree, or where they must.

    Args:
        decision: A decision with a mask.
        x: The network's input, `[B, C, ...]`.
        whole: Why the network cannot run on part of this batch; None if it can.
        owner: Names the policies that decide, for the message.

    Raises:
        PolicyError: The mask does not fit the batch.
    """
    mask = decision.mask
    assert isinstance(mask, tuple)
    if len(mask) != x.shape[0]:
        raise PolicyError(
            f"{owner()} gave a mask of {len(mask)} samples for a batch of {x.shape[0]}; "
            "give one boolean a sample"
        )
    if all(mask):
        return replace(decision, mask=None)
    if not any(mask):
        return Compute(decision.reason, decision.scope)
    if whole is not None:
        return Compute(f"{decision.reason} for part of the batch: {whole}", decision.scope)
    return decision


def fitted(decision: Reuse, x: Tensor) -> Reuse:
    """A mask that another branch of the step decided, for this one.

    Branches may differ in their batch: skip-layer guidance runs one half of a batched pair. Which
    rows then belong together is not known, so one sample that must be computed computes all.
    """
    mask = decision.mask
    assert isinstance(mask, tuple)
    if len(mask) == x.shape[0]:
        return decision
    return replace(decision, mask=(all(mask),) * x.shape[0])


def visible(history: Evaluations) -> Evaluations:
    """The evaluations that every sample has."""
    for depth, evaluation in enumerate(history):
        if None in evaluation.stamps:
            return history[:depth]
    return history


def diverged(history: Evaluations) -> bool:
    """Whether samples of this history were computed at different steps."""
    return any(evaluation.stamps for evaluation in history)


def groups(history: Evaluations, rows: Sequence[int], batch: int) -> list[Group]:
    """The samples `rows` by equal stamps, each with its part of the history."""
    members: dict[tuple[Stamp | None, ...], list[int]] = {}
    for row in rows:
        key = tuple(stamp_of(evaluation, row) for evaluation in history)
        members.setdefault(key, []).append(row)
    return [Group(tuple(own), part(history, own, batch)) for own in members.values()]


def part(history: Evaluations, rows: Sequence[int], batch: int) -> Evaluations:
    """The history of some samples, as far back as all of them have one."""
    kept = []
    index: Tensor | None = None
    for evaluation in history:
        stamps = [stamp_of(evaluation, row) for row in rows]
        if None in stamps:
            break
        if len(rows) < batch and index is None:
            index = torch.tensor(rows, device=evaluation.residual.device)
        kept.append(
            restamped(evaluation, stamps)
            if index is None
            else restamped(selected(evaluation, index), stamps)
        )
    return tuple(kept)


def merged(
    before: Evaluations, fresh: Evaluation, rows: Sequence[int], batch: int, depth: int
) -> Evaluations:
    """The history after `rows` were computed: theirs moves back by one, the others' stays.

    Args:
        before: The history so far, newest first.
        fresh: What was computed, `[R, C, ...]`.
        rows: Places of its samples in the batch.
        batch: Size of the batch.
        depth: How many evaluations are kept.
    """
    index = torch.tensor(rows, device=fresh.residual.device)
    place = {row: position for position, row in enumerate(rows)}
    kept: list[Evaluation] = []
    for level in range(min(depth, len(before) + 1)):
        old = before[level] if level < len(before) else None
        moved = fresh if level == 0 else selected(before[level - 1], index)
        stamps: list[Stamp | None] = []
        for row in range(batch):
            if row not in place:
                stamps.append(None if old is None else stamp_of(old, row))
            elif level == 0:
                stamps.append((fresh.index, fresh.sigma, fresh.time))
            else:
                stamps.append(stamp_of(before[level - 1], row))
        if not any(stamps):
            break
        whole = old if old is not None else before[level - 1]
        kept.append(restamped(written(whole, moved, index), stamps))
    return tuple(kept)


def stamp_of(evaluation: Evaluation, row: int) -> Stamp | None:
    """When one sample was computed; None if it was not."""
    if evaluation.stamps:
        return evaluation.stamps[row]
    return (evaluation.index, evaluation.sigma, evaluation.time)


def restamped(evaluation: Evaluation, stamps: Sequence[Stamp | None]) -> Evaluation:
    """An evaluation with these stamps; none of its own where all are equal."""
    newest = max(stamp for stamp in stamps if stamp is not None)
    same = all(stamp == newest for stamp in stamps)
    index, sigma, time = newest
    own = () if same else tuple(stamps)
    return replace(evaluation, index=index, sigma=sigma, time=time, stamps=own)


def selected(evaluation: Evaluation, index: Tensor) -> Evaluation:
    """The samples at `index`, `[R]`; the stamps are left to the caller."""
    return mapped(evaluation, lambda tensor: tensor.index_select(0, index))


def written(evaluation: Evaluation, source: Evaluation, index: Tensor) -> Evaluation:
    """A copy with the samples of `source` at `index`; the stamps are left to the caller."""
    pairs = zip(tensors(evaluation), tensors(source), strict=True)
    copies = iter([old.index_copy(0, index, new) for old, new in pairs])
    return mapped(evaluation, lambda _: next(copies))


def tensors(evaluation: Evaluation) -> list[Tensor]:
    """The tensors of an evaluation."""
    found = (evaluation.residual, evaluation.input, evaluation.output)
    return [tensor for tensor in found if tensor is not None]


def mapped(evaluation: Evaluation, change: Callable[[Tensor], Tensor]) -> Evaluation:
    """An evaluation with `change` applied to its tensors, in the order of `tensors`."""
    return replace(
        evaluation,
        residual=change(evaluation.residual),
        input=None if evaluation.input is None else change(evaluation.input),
        output=None if evaluation.output is None else change(evaluation.output),
    )
