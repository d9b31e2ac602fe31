"""Per-sample decisions: histories whose samples were computed at different steps.

A policy with `decides="sample"` may reuse some samples of a batch and compute the others. From then
on the samples of one evaluation carry stamps of their own: the step at which each was computed. A
reused answer is made for one group of equal stamps after the other, so that a predictor always
sees plain numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from erta_framework.errors import PolicyError
from erta_framework.session._decisions import Compute, Decision, Reuse
from erta_framework.session._evaluation import Evaluation, Evaluations, Stamp


@dataclass(frozen=True, slots=True)
class Group:
    """Samples whose kept evaluations were computed at the same steps."""

    rows: tuple[int, ...]
    history: Evaluations


def resolve_mask(
    decision: Reuse, x: Tensor, undivided: Callable[[], str], owner: Callable[[], str]
) -> Decision:
    """A masked decision made plain where the samples agree, or where they must.

    Args:
        decision: A decision with a mask.
        x: The network's input, `[B, C, ...]`.
        undivided: Why the network cannot run on part of this batch; empty if it can.
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
    if why := undivided():
        return Compute(f"{decision.reason} for part of the batch: {why}", decision.scope)
    return decision


def fit_mask(decision: Reuse, x: Tensor) -> Reuse:
    """A mask that was decided for another branch of the step, for this one.

    Branches may differ in their batch: skip-layer guidance runs one half of a batched pair. Which
    rows then belong together is not known, so one sample that must be computed computes all.
    """
    mask = decision.mask
    assert isinstance(mask, tuple)
    if len(mask) == x.shape[0]:
        return decision
    return replace(decision, mask=(all(mask),) * x.shape[0])


def drop_partial(history: Evaluations) -> Evaluations:
    """The evaluations that every sample has."""
    for depth, evaluation in enumerate(history):
        if None in evaluation.stamps:
            return history[:depth]
    return history


def has_diverged(history: Evaluations) -> bool:
    """Whether samples of this history were computed at different steps."""
    return any(evaluation.stamps for evaluation in history)


def group_rows(history: Evaluations, rows: Sequence[int], batch: int) -> list[Group]:
    """The samples `rows` by equal stamps, each group with its part of the history."""
    members: dict[tuple[Stamp | None, ...], list[int]] = {}
    for row in rows:
        key = tuple(get_stamp(evaluation, row) for evaluation in history)
        members.setdefault(key, []).append(row)
    return [Group(tuple(own), select_rows(history, own, batch)) for own in members.values()]


def select_rows(history: Evaluations, rows: Sequence[int], batch: int) -> Evaluations:
    """The history of some samples, as far back as all of them have one."""
    kept = []
    index: Tensor | None = None
    for evaluation in history:
        stamps = [get_stamp(evaluation, row) for row in rows]
        if None in stamps:
            break
        if len(rows) < batch and index is None:
            index = torch.tensor(rows, device=evaluation.example.device)
        chosen = evaluation if index is None else take_samples(evaluation, index)
        kept.append(set_stamps(chosen, stamps))
    return tuple(kept)


def merge_rows(
    before: Evaluations, fresh: Evaluation, rows: Sequence[int], batch: int, depth: int
) -> Evaluations:
    """The history after `rows` were computed: theirs moves back by one, the others' stays.

    Think of one column of evaluations a sample, newest on top. A computed sample pushes `fresh`
    onto its column; the columns of the other samples do not move. Level k of the result is row k of
    all columns, as one batched evaluation again, so a level may mix steps: its stamps say which.
    A sample whose column is shorter has the stamp None there, and its values mean nothing.

    Args:
        before: The history so far, newest first; every evaluation is `[B, ...]`.
        fresh: What was computed, `[R, ...]`.
        rows: Places of its samples in the batch.
        batch: Size of the batch, B.
        depth: How many levels are kept.
    """
    index = torch.tensor(rows, device=fresh.example.device)
    computed = set(rows)
    kept: list[Evaluation] = []
    for level in range(min(depth, len(before) + 1)):
        old = before[level] if level < len(before) else None
        above = None if level == 0 else before[level - 1]
        pushed = fresh if above is None else take_samples(above, index)
        stamps: list[Stamp | None] = []
        for row in range(batch):
            if row not in computed:
                stamps.append(None if old is None else get_stamp(old, row))
            elif above is None:
                stamps.append((fresh.index, fresh.sigma, fresh.time))
            else:
                stamps.append(get_stamp(above, row))
        if not any(stamps):
            break
        # below the last level there is nothing to write into; the level above has its shape
        whole = old if old is not None else before[level - 1]
        kept.append(set_stamps(put_samples(whole, pushed, index), stamps))
    return tuple(kept)


def get_stamp(evaluation: Evaluation, row: int) -> Stamp | None:
    """When one sample was computed; None if it was not."""
    if evaluation.stamps:
        return evaluation.stamps[row]
    return (evaluation.index, evaluation.sigma, evaluation.time)


def set_stamps(evaluation: Evaluation, stamps: Sequence[Stamp | None]) -> Evaluation:
    """The evaluation with these stamps; none of its own where all are equal."""
    newest = max(stamp for stamp in stamps if stamp is not None)
    same = all(stamp == newest for stamp in stamps)
    index, sigma, time = newest
    own = () if same else tuple(stamps)
    return replace(evaluation, index=index, sigma=sigma, time=time, stamps=own)


def take_samples(evaluation: Evaluation, index: Tensor) -> Evaluation:
    """The samples at `index`, `[R]`; the stamps are left to the caller."""
    return evaluation.map_tensors(lambda _, tensor: tensor.index_select(0, index))


def put_samples(evaluation: Evaluation, source: Evaluation, index: Tensor) -> Evaluation:
    """A copy with the samples of `source` at `index`; the stamps are left to the caller."""
    return evaluation.map_tensors(
        lambda name, tensor: tensor.index_copy(0, index, source.tensors[name])
    )
