"""Outputs of decided calls: of the whole batch, or sample by sample where histories differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from erta_framework.errors import PolicyError, ProtocolError
from erta_framework.session._call import Call
from erta_framework.session._computation import Computation, NetworkRows
from erta_framework.session._decisions import Compute, Decision, Reuse
from erta_framework.session._evaluation import OUTPUT, Evaluations
from erta_framework.session._history import History, is_same_kind
from erta_framework.session._network import Network
from erta_framework.session._selection import group_rows, has_diverged, select_rows
from erta_framework.session._site import Seam, Site
from erta_framework.session._step import Step
from erta_framework.session._trace import Trace
from erta_framework.session._validation import check_output, describe_tensor
from erta_framework.session._where import Where

if TYPE_CHECKING:
    from erta_framework.plugins import Engine


def compute_default(step: Step, call: Call) -> Tensor:
    """The output without a predictor: of the newest evaluation, or the network's.

    What is reused of an evaluation follows from the prediction; see `SessionInfo.reused`.
    """
    decision = call.decision
    if not isinstance(decision, Reuse):
        return call.compute()
    if decision.positions is not None:
        return call.compute.reuse(decision.positions, decision.first_layer)
    newest = call.history[0]
    if not newest.tensors:  # tokens have no residual
        raise PolicyError(
            f"Reuse({decision.reason!r}) says not which tokens are reused; give it "
            "positions=..., [B, L] booleans"
        )
    if step.session.reused == "output" and call.seam is Seam.LATENT:
        return newest.tensor(OUTPUT).clone()  # a pipeline may write into what it gets
    return call.x + newest.residual


class Answerer:
    """Gets the output of a call from the policies, checks it, and records what was computed."""

    def __init__(self, engine: Engine, history: History, trace: Trace, where: Where) -> None:
        self._engine, self._history, self._trace, self._where = engine, history, trace, where
        traits = engine.traits
        self._hooked = "forward" in engine.active
        self._per_sample = traits.decides == "sample"
        self._corrects = traits.corrects_computed
        # reading a value back would wait for the device, and one rank cannot compute alone
        self._check_later = traits.static or traits.collective
        self._step: Step | None = None

    def begin(self, step: Step) -> None:
        """Open a step."""
        self._step = step

    def computation(
        self,
        site: Site,
        x: Tensor,
        network: Network,
        inner: bool,
        rows: tuple[int, ...] | None = None,
    ) -> Computation:
        """The network call of a site, which records what it computes.

        Args:
            site: Where it is computed.
            x: Its input, `[B, C, ...]`.
            network: What the driver offers.
            inner: Whether it runs within another call, and so counts as no network call.
            rows: Places of the samples in `x`, where they are part of the batch.
        """
        keep = network.keep
        return Computation(
            network,
            lambda output: self._record(site, x, output, keep, inner, rows),
            lambda run, other, at: self._trace.run_trial(run, x.numel(), other, at),
            inner,
            lambda _: None if inner else self._trace.count(x),
        )

    def answer(self, call: Call) -> tuple[Tensor, tuple[int, ...] | None, str]:
        """The output, the samples computed where they differ, and why if nobody decided it."""
        if self._per_sample and call.reused and self._differs(call):
            return self._answer_rows(call)
        output = self._answer_whole(call)
        return output, None, call.compute.reason

    def _answer_whole(self, call: Call) -> Tensor:
        compute = call.compute
        if self._hooked:
            output: Tensor = self._engine.call_hook("forward", self._where, self._step, call)
        else:
            assert self._step is not None
            output = compute_default(self._step, call)
        check_output(call, compute, output, self._corrects, self._where.owner, self._where)
        if compute.ran:
            return output
        # one reduction without a temporary, which NaN and infinity both survive
        if self._check_later:
            self._trace.keep_extremes(self._where.index or 0, call.site, output)
        elif not math.isfinite(float(torch.linalg.vector_norm(output, ord=torch.inf))):
            compute.reason = "reused output was not finite"
            return compute()
        return output

    def _answer_rows(self, call: Call) -> tuple[Tensor, tuple[int, ...], str]:
        """Samples to compute run together, the others in groups of equal stamps."""
        batch, history = call.x.shape[0], self._source_of(call)
        mask = call.decision.mask if isinstance(call.decision, Reuse) else None
        assert mask is None or isinstance(mask, tuple)
        absent = tuple(row for row in range(batch) if mask is not None and not mask[row])
        done, why = list(absent), ""
        parts: list[tuple[Tensor, Tensor]] = []

        def answer_part(decision: Decision, rows: tuple[int, ...], own: Evaluations) -> Computation:
            index = torch.tensor(rows, device=call.x.device)
            x = call.x.index_select(0, index)
            part = NetworkRows(call.compute.network, index)
            compute = self.computation(call.site, x, part, call.compute.inner, rows)
            one = replace(call, x=x, history=own, decision=decision, compute=compute, rows=rows)
            parts.append((index, self._answer_whole(one)))
            return compute

        if absent:
            decided = Compute(call.decision.reason, call.decision.scope)
            answer_part(decided, absent, select_rows(history, absent, batch))
        decided_reuse = Reuse(call.decision.reason, call.decision.scope)
        present = [row for row in range(batch) if row not in absent]
        for group in group_rows(history, present, batch):
            compute = answer_part(decided_reuse, group.rows, group.history)
            if compute.ran:
                done.extend(group.rows)
                why = compute.reason
        # the shape of the network's output may be another than that of its input
        first = parts[0][1]
        output = first.new_empty((batch, *first.shape[1:]))
        for index, answer in parts:
            if answer.dtype != first.dtype or answer.shape != (len(index), *first.shape[1:]):
                raise PolicyError(
                    f"{self._where.owner('forward')} returned {describe_tensor(answer)} for "
                    f"{len(index)} samples and {describe_tensor(first)} for others "
                    f"{self._where()}; the samples of a batch have one shape and type"
                )
            output.index_copy_(0, index, answer)
        return output, tuple(sorted(done)), why

    def _differs(self, call: Call) -> bool:
        """Whether the samples of a reused call need outputs made apart."""
        masked = isinstance(call.decision, Reuse) and call.decision.mask is not None
        return masked or has_diverged(self._source_of(call))

    def _source_of(self, call: Call) -> Evaluations:
        """The history that a reused call uses, evaluations of part of a batch included."""
        lent = call.decision.branch if isinstance(call.decision, Reuse) else None
        site = call.site if lent is None else Site(call.model, lent, call.site.path)
        return self._history.kept[site]

    def _record(
        self,
        site: Site,
        x: Tensor,
        output: Tensor,
        keep: Callable[[Tensor, Tensor], Mapping[str, Tensor] | None],
        inner: bool,
        rows: tuple[int, ...] | None,
    ) -> None:
        trace, history = self._trace, self._history
        if not inner:
            trace.count(x)
        if history.needs.evaluations == 0 or self._step is None:
            return
        tensors = keep(x, output)
        if tensors is None:
            if not is_same_kind(output, x):
                raise ProtocolError(
                    f"the network returned {describe_tensor(output)} for an input of "
                    f"{describe_tensor(x)} {self._where()}: a residual needs equal shapes and "
                    "types; convert in compute"
                )
            tensors = history.keep_residual(x, output)
        if rows is None:
            history.record(site, self._step.interval, tensors)
        else:
            history.record_rows(site, self._step.interval, tensors, rows)
        trace.history_bytes = max(trace.history_bytes, history.bytes)
