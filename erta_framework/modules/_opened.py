"""One network call with its gates open, measured the first time."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from torch import nn

from erta_framework.errors import CapabilityError
from erta_framework.modules._cells import Shape
from erta_framework.modules._costs import Measurement, measure_once
from erta_framework.modules._gated_call import GatedCall
from erta_framework.modules._gates import Gates
from erta_framework.session import Session


@contextmanager
def opened(gates: Gates, call: GatedCall, session: Session) -> Generator[None, None, None]:
    """The gates with their plans, at rest again afterwards, also after an exception.

    A gate holds one plan, so that calls of several threads on one network take turns.
    """
    with gates.turn:
        try:
            call.open(session.where)
            yield
        finally:
            gates.rest()


def measure_run(
    network: nn.Module, shape: Shape, run: Callable[[], Any], call: GatedCall
) -> tuple[Any, Measurement | None]:
    """Run a network once: what it returned, and what its modules cost.

    They are measured in the first run in which no module is left out. None if they are not known.
    """
    output: list[Any] = []
    try:
        costs, ran = measure_once(
            network, shape, lambda: output.append(run()), lambda: call.ran_whole
        )
    except CapabilityError:  # this network does nothing that could be counted
        if not output:
            raise
        return output[0], None
    if not ran:
        output.append(run())
    return output[0], costs if not ran or call.ran_whole else None
