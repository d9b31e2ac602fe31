"""Classifier-free guidance with its two branches on two ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed as dist
from torch import Tensor

from erta_framework import CFG
from erta_framework.errors import InputError
from erta_framework.sampling import Branch
from erta_integrations.fabric.agreement._collectives import (
    DEFAULT_TIMEOUT,
    Ledger,
    choose_device,
    format_ranks,
    gather,
)


class CFGParallel:
    """Evaluates the conditional branch on the first rank of a group and the other on the second.

    Use it instead of `CFG` in a `Sampler` or `SamplingLoop`. Each rank runs one branch, keeps the
    history of that branch only, and exchanges the predictions once a step. Both ranks then combine
    the same two tensors and go on with the same latents.

    Profiles that were calibrated with `CFG` of the same scale serve here. Calibrate with `CFG`: a
    profiler would see one branch, and refuses. A policy that decides while sampling sees one branch
    on each rank, so it needs `add_agreement(policies, group)`.

    Args:
        cfg: The scale. Guidance on part of the steps is refused, since the second rank would have
            nothing to do outside of it; so are both branches in one batch.
        group: Two ranks.
        timeout: Seconds to wait for the other rank.

    Raises:
        InputError: The group has not two ranks, or the guidance cannot be divided.

    Example:
        >>> guidance = CFGParallel(CFG(scale=5.0), find_group(mesh, "cfg"))  # doctest: +SKIP
        >>> Sampler(add_agreement([policy], group), guidance=guidance)  # doctest: +SKIP
    """

    divided = True
    """Tells policies that each process evaluates only some of the branches."""

    def __init__(
        self, cfg: CFG, group: dist.ProcessGroup | None, *, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        size = 1 if group is None else group.size()
        if group is None or size != 2:
            raise InputError(
                f"CFGParallel got a group of {size}, guidance has two branches; give two ranks"
            )
        if cfg.batched or (cfg.start, cfg.stop) != (0.0, 1.0):
            raise InputError(
                f"CFGParallel cannot divide {cfg!r}: both branches of every step are evaluated "
                "apart; leave out batched, start and stop, or use CFG on every rank"
            )
        self.cfg = cfg
        self.group = group
        self.timeout = timeout
        self.ledger = Ledger()
        self._index = 0

    def __repr__(self) -> str:
        # a run is described by its guidance, not by where that is computed: profiles of CFG serve
        return repr(self.cfg)

    @property
    def names(self) -> tuple[str, ...]:
        """Both branches, as of `CFG`."""
        return self.cfg.names

    def branches(
        self, cond: Tensor, uncond: Tensor | None, index: int, num_steps: int
    ) -> tuple[Branch, ...]:
        """The branch of this rank.

        Raises:
            InputError: There is no unconditional condition.
        """
        self._index = index
        return (self.cfg.branches(cond, uncond, index, num_steps)[self.group.rank()],)

    def combine(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """The guided prediction of both ranks' branches, `[B, C, ...]`.

        Raises:
            AgreementError: The other rank is gone or late.
        """
        (mine,) = outputs.values()
        where = f"exchanging the branches of step {self._index} ({format_ranks(self.group)})"
        self.ledger.exchanges += 1
        self.ledger.bytes += mine.nbytes
        sent = mine.contiguous().to(choose_device(self.group, mine.device))
        parts = [part.to(mine.device) for part in gather(sent, self.group, self.timeout, where)]
        return self.cfg.combine(dict(zip(self.names, parts, strict=True)))
