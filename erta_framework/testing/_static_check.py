"""Check of what `static` promises: decisions known beforehand, no value read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode

from erta_framework.plugins import Policy
from erta_framework.testing._compare import fail, list_decisions
from erta_framework.testing._drivers import drive_by_hand
from erta_framework.testing._setup import choose_setup, make_engine

READS = frozenset(
    {"item", "tolist", "cpu", "numpy", "equal", "allclose", "nonzero", "masked_select", "unique"}
    | {"__bool__", "__float__", "__int__", "__index__", "__array__"}
)


class ReadBacks(TorchFunctionMode):
    """Notes every operation that brings a tensor's value to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation and note its name."""
        name = getattr(func, "__name__", "")
        if name in READS:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def check_static_reads_nothing_back(policy: Policy) -> None:
    """A policy that declares `static` decides alike for all latents and reads no value back."""
    setup, engine = choose_setup(policy), make_engine(policy)
    if not engine.traits.static:
        return
    one, other = (list_decisions(setup.run(engine, setup.request(seed=s)).trace) for s in (12, 13))
    if one != other:
        pair = next(pair for pair in zip(one, other, strict=True) if pair[0] != pair[1])
        fail(
            policy,
            f"it declares static = True, but two requests decided differently: {pair}",
            "decide from the step alone, or drop static",
        )
    request, reads = setup.request(seed=12), ReadBacks()
    driver = drive_by_hand(setup, setup.session(engine, request), request, setup.toy())
    next(driver)  # tables may be read when the session starts
    last = request.schedule.num_steps - 1
    with reads:
        for verb in driver:
            if (verb.name, verb.index) == ("end", last):
                break
    driver.close()
    if reads.found:
        fail(
            policy,
            f"it declares static = True, but reads values back while sampling: {reads.found[:4]}",
            "work tables out in on_session_start, or drop static",
        )
