"""Runs a network call at most once, on the whole batch or on part of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from erta_framework.errors import CapabilityError, ProtocolError
from erta_framework.session._network import (
    UNDIVIDED,
    Network,
    PlannedNetwork,
    TokenNetwork,
    TrialPlan,
)
from erta_framework.session._step import PLANNED

RunAt = Callable[[Tensor, float | None], Tensor]


class Computation:
    """Runs a network call at most once, and remembers the raw output and that it ran.

    Args:
        network: What the driver offers.
        on_output: Called with the raw output at once, before any policy can touch it.
        on_trial: Runs a trial, from what runs it, its latents and timestep, and counts it.
        inner: Whether it runs within another call, and so counts as no network call.
        on_part: Called instead of `on_output` where the network ran on part of the tokens.

    Attributes:
        output: The raw output, once the network ran.
        failure: What the network raised.
        reason: Why it ran although it was to be left out; for the trace.
        asked: Names of the signals that policies asked for.
        trials: How many trials ran.
    """

    __slots__ = (
        "_on_output",
        "_on_part",
        "_on_trial",
        "_version",
        "asked",
        "failure",
        "inner",
        "network",
        "output",
        "reason",
        "trials",
    )

    def __init__(
        self,
        network: Network,
        on_output: Callable[[Tensor], None] | None = None,
        on_trial: Callable[[RunAt, Tensor, float | None], Tensor] | None = None,
        inner: bool = False,
        on_part: Callable[[Tensor], None] | None = None,
    ) -> None:
        self.network, self.inner = network, inner
        self._on_output, self._on_part, self._on_trial = on_output, on_part, on_trial
        self._version: int | None = None
        self.output: Tensor | None = None
        self.failure: BaseException | None = None
        self.reason = ""
        self.asked: tuple[str, ...] = ()
        self.trials = 0

    def __call__(self) -> Tensor:
        """The raw output; the first call runs the network.

        Raises:
            ProtocolError: The network returned something that is no tensor.
        """
        return self._run(self.network.run, self._on_output)

    def reuse(self, positions: Tensor, first_layer: int) -> Tensor:
        """The raw output where the network ran on part of the tokens; see `Reuse.positions`.

        Raises:
            CapabilityError: The driver samples no tokens.
        """
        network = self.network
        if not isinstance(network, TokenNetwork):
            raise CapabilityError(
                "a decision reuses keys and values by position, which this driver does not have; "
                "it works for masked language models"
            )
        return self._run(lambda: network.run_reusing(positions, first_layer), self._on_part)

    def _run(self, run: Callable[[], Tensor], on_output: Callable[[Tensor], None] | None) -> Tensor:
        if self.output is None:
            try:
                output = run()
            except BaseException as error:
                self.failure = error
                raise
            if not isinstance(output, Tensor):
                raise ProtocolError(
                    f"the network returned {type(output).__name__}, it must return a tensor; "
                    "unpack its output in the compute function"
                )
            # inference tensors do not count writes
            self._version = None if output.is_inference() else output._version
            self.output = output
            if on_output is not None:
                on_output(output)
        return self.output

    def signal(self, name: str) -> Tensor:
        """A signal that the driver offers; noted for the trace."""
        if name not in self.asked:
            self.asked += (name,)
        return self.network.signal(name)

    def run_at(self, x: Tensor, timestep: float | None, plan: TrialPlan | None = None) -> Tensor:
        """The raw output for other latents, timestep or plan of places; nothing of it is kept.

        Raises:
            CapabilityError: The driver cannot do that.
        """
        run: RunAt = self.network.run_at
        if plan is not None:
            if not isinstance(self.network, PlannedNetwork):
                raise CapabilityError(
                    f"no trial with a plan: a {type(self.network).__name__} has no gates on places "
                    "inside the network; a policy that asks for one selects places, and requires "
                    f"{PLANNED!r} in its traits"
                )
            run = partial(self.network.run_planned, plan)
        try:
            output = (
                run(x, timestep) if self._on_trial is None else self._on_trial(run, x, timestep)
            )
        except BaseException as error:
            self.failure = error
            raise
        self.trials += 1
        return output

    @property
    def written(self) -> bool:
        """Whether someone wrote into the raw output after the network returned it."""
        if self.output is None or self._version is None:
            return False
        return self.output._version != self._version

    @property
    def ran(self) -> bool:
        """Whether the network ran."""
        return self.output is not None


@dataclass(frozen=True, slots=True, eq=False)
class NetworkRows:
    """Part of a network call: the samples at some places of its batch.

    Attributes:
        whole: The call.
        rows: The places, `[R]`.
    """

    whole: Network
    rows: Tensor
    undivided: str = UNDIVIDED

    def run(self) -> Tensor:
        """The prediction for these samples, `[R, C, ...]`."""
        return self.whole.run() if self.whole.undivided else self.whole.run_rows(self.rows)

    def run_rows(self, rows: Tensor) -> Tensor:
        """Refused: a part is not divided again."""
        raise CapabilityError("part of a batch is not divided again")

    def run_at(self, x: Tensor, timestep: float | None) -> Tensor:
        """Refused: trials run for a whole batch."""
        raise CapabilityError(
            "no trial: the network was asked for part of a batch; ask for trials in decide, which "
            "sees the whole batch"
        )

    def offers(self, name: str) -> bool:
        """As the whole call."""
        return self.whole.offers(name)

    def signal(self, name: str) -> Tensor:
        """As the whole call: of the whole batch."""
        return self.whole.signal(name)

    def keep(self, x: Tensor, output: Tensor) -> Mapping[str, Tensor] | None:
        """As the whole call, for these samples."""
        return self.whole.keep(x, output)
