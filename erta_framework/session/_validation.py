"""What a policy may answer: outputs and intervals, checked before a session takes them."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from erta_framework.errors import PolicyError
from erta_framework.session._call import Call
from erta_framework.session._computation import Computation
from erta_framework.session._evaluation import RESIDUAL
from erta_framework.session._history import is_same_kind
from erta_framework.session._step import Interval, SessionInfo

NUMBER = (int, float)


def check_output(
    call: Call,
    network: Computation,
    output: object,
    corrects: bool,
    owner: Callable[[str], str],
    where: Callable[[], str],
) -> None:
    """Refuse what no policy may return from `forward`.

    Args:
        call: The call.
        network: The network of this call, which may have run.
        output: The answer.
        corrects: Whether a policy declares that it corrects computed outputs.
        owner: Who implements a hook, in words.
        where: Step and request, in words.

    Raises:
        PolicyError: It is no tensor, or not like the network's; the network was left out or its
            output replaced although the decision was to compute.
    """
    raw = network.output
    if raw is not None and output is raw and not network.written:
        return  # what the network returned, as it was
    expected = call.x if raw is None else raw
    if not isinstance(output, Tensor):
        raise PolicyError(
            f"{owner('forward')} returned {type(output).__name__} from forward "
            f"{where()}, not a tensor"
        )
    # only the residual says what an answer that the network did not give must be like
    known = raw is not None or not call.history or RESIDUAL in call.history[0].tensors
    if known and not is_same_kind(output, expected):
        raise PolicyError(
            f"{owner('forward')} returned {describe_tensor(output)} from forward "
            f"{where()}, expected {describe_tensor(expected)}"
        )
    if network.written:
        raise PolicyError(
            f"{owner('forward')} wrote into the network's output {where()}; return a new tensor"
        )
    if call.reused:
        return
    if not network.ran:
        raise PolicyError(
            f"{owner('forward')} answered branch {call.branch!r} without the network "
            f"{where()}, although the decision was to compute; answer only when "
            "call.reused"
        )
    if output is not raw and not corrects:
        raise PolicyError(
            f"{owner('forward')} replaced a computed output {where()}; correct "
            "only when call.reused, or declare traits = Traits(corrects_computed=True)"
        )


def check_interval(
    info: SessionInfo,
    given: Interval,
    settled: Interval,
    owner: Callable[[str], str],
    where: Callable[[], str],
) -> None:
    """Refuse an interval that `adjust_interval` must not return.

    Args:
        info: The request.
        given: The provisional interval.
        settled: The adjusted one.
        owner: Who implements a hook, in words.
        where: Step and request, in words.

    Raises:
        PolicyError: It is no interval of plain numbers, moves the past, or leaves the schedule.
    """
    final = info.sigmas[-1]
    low, high = (final, given.start) if final <= given.start else (given.start, final)
    last = given.index == info.num_steps - 1
    if settled is given and low <= settled.end <= high and (not last or settled.end == final):
        return

    def who() -> str:  # only for an error: describing a profile hashes it
        return owner("adjust_interval")

    if not isinstance(settled, Interval):
        raise PolicyError(f"{who()} returned {settled!r} from adjust_interval, not an Interval")
    if not (isinstance(settled.end, NUMBER) and isinstance(settled.end_time, NUMBER)):
        raise PolicyError(
            f"{who()} returned {settled!r} from adjust_interval {where()}; end and "
            "end_time are plain numbers (a tensor would be read back at every step)"
        )
    if not math.isfinite(settled.end_time):
        raise PolicyError(
            f"{who()} set the network time after step {given.index} to {settled.end_time}"
        )
    if (settled.index, settled.start, settled.time) != (given.index, given.start, given.time):
        raise PolicyError(
            f"{who()} moved the past: adjust_interval got {given}, returned {settled}; "
            "only end and end_time may change"
        )
    if not low <= settled.end <= high:
        raise PolicyError(
            f"{who()} set the end of step {given.index} to {settled.end}, outside what remains "
            f"of the schedule, [{low}, {high}]"
        )
    if last and settled.end != final:
        raise PolicyError(
            f"{who()} ends the last step at {settled.end}, but the schedule ends at {final}; "
            "the last step must take all that remains"
        )


def describe_tensor(tensor: Tensor) -> str:
    """Shape, dtype and device of a tensor, for messages."""
    return f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
