"""`H2Cache`: two stages of blocks, each behind a first-block test on pooled residuals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property

from erta_framework.errors import PolicyError
from erta_framework.modules import Select
from erta_framework.session import Trace
from erta_policies.shared import SpanGate, SpanGates

DOUBLE, SINGLE = r"(.*\.)?transformer_blocks", r"(.*\.)?single_transformer_blocks"
ROWS, SIDES = (2048, 384), (2, 12)
"""Rows after pooling in each stage, as released; and the sides that these are at 1024 x 1024."""


class H2Cache(SpanGates):
    """Leaves out the early and the late blocks of a network, each by a test of their own.

    H2-Cache, arXiv 2510.27171: the early blocks fix the layout, the late ones refine the detail. In
    each of the two stages the first block runs. The change of its residual `a` since the stage
    last ran is compared with a threshold,

        mean |P(a) - P(a_ref)| / mean |P(a_ref)| < tau,

    with P the mean over squares of tokens and channels, the pooled feature summary. Below it, the
    other blocks of the stage are left out, and what they added then is added again. Where the
    first stage is left out, the second one is as well, without a test. So a step runs two blocks
    (HH), those and the first stage (MH), or all of them (MM). References change only where a stage
    runs.

    The steps, the strict comparison, the forced second stage, the streams (image tokens in the
    first stage, all tokens in the second) and the pooling are those of the released code
    (Bluear7878/H2-Cache-A-Hierarchical-Dual-Stage-Cache). Ours are `split`, `fixed_pooling`,
    `warmup`, `max_consecutive`, and that the first branch decides for all. The mean is over all
    samples of a call, as released.

    Attributes:
        tau1: Change at which the first stage runs; 0.12 by default in the code, 0.15 in its
            experiments.
        tau2: The same of the second stage; 0.10 by default in the code, 0.22 in its experiments.
        split: Blocks in the first stage. None puts the double blocks of FLUX and its kind in the
            first stage and the single blocks in the second.
        fixed_pooling: Pool squares of 2 and of 12 in any size of latents; else the tokens are
            pooled to about 2048 and 384 rows, as released. The same at 1024 x 1024 in FLUX.
        warmup: First steps at which every block runs.
        max_consecutive: Steps after which a stage runs again; None for no limit.
        each_branch: Whether every guidance branch decides for itself; else the first one does.

    Raises:
        PolicyError: A setting is out of range.
        CapabilityError: At attach, where there are no such two stages.

    Example:
        >>> [gate.follows for gate in H2Cache(tau1=0.15, tau2=0.22).gates]
        [False, True]
    """

    tau1: float = 0.12
    tau2: float = 0.10
    split: int | None = None
    fixed_pooling: bool = False
    each_branch: bool = False

    @cached_property
    def gates(self) -> Sequence[SpanGate]:
        """The two stages."""
        if self.split is not None and self.split < 2:
            raise PolicyError(
                f"split of H2Cache is {self.split}; the first stage needs 2 blocks or more"
            )
        if self.split is None:
            stages = [Select(kind=("block",), stack=stack) for stack in (DOUBLE, SINGLE)]
        else:
            stages = [
                Select(kind=("block",), depth=depth)
                for depth in (f":{self.split}", f"{self.split}:")
            ]
        rows = (None, None) if self.fixed_pooling else ROWS
        return (
            SpanGate(blocks=stages[0], threshold=self.tau1, rows=rows[0], pool=SIDES[0]),
            SpanGate(
                blocks=stages[1],
                threshold=self.tau2,
                rows=rows[1],
                pool=SIDES[1],
                streams="all",
                follows=True,
            ),
        )


def count_outcomes(trace: Trace) -> Mapping[str, int]:
    """How many network calls ran no stage (HH), the first one (MH), or both (MM).

    For a request in which `H2Cache` is the only policy with spans.

    Example:
        >>> count_outcomes(Trace())
        {'HH': 0, 'MH': 0, 'MM': 0}
    """
    spans = [call.sites["span"] for call in trace.calls() if "span" in call.sites]
    found = Counter("HH" if not ran else "MM" if not reused else "MH" for ran, reused, _ in spans)
    return {name: found[name] for name in ("HH", "MH", "MM")}
