"""What the modules of a network cost: FLOPs and bytes of output, counted in one network call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from erta_framework.errors import CapabilityError
from erta_framework.modules._streams import bind_tensors
from erta_framework.modules._tally import Tally


@dataclass(frozen=True, slots=True, eq=False)
class Measurement:
    """What one network call cost, by path of the module; `""` is the network itself.

    Attributes:
        flops: Floating-point operations of matrix products, convolutions and attention; of all
            visits, where a module runs several times.
        output_bytes: Size of the output, or of all outputs.
        visits: How often each module ran.
        input_bytes: Size of the first tensor among the arguments.
    """

    flops: Mapping[str, int]
    output_bytes: Mapping[str, int]
    visits: Mapping[str, int]
    input_bytes: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """FLOPs of the network."""
        return self.flops[""]

    @property
    def shares(self) -> dict[str, float]:
        """FLOPs of every module as a share of the network's."""
        return {path: flops / self.total for path, flops in self.flops.items()}

    def count_idle(self, idle: Iterable[str]) -> int:
        """FLOPs of modules that did not run; one inside another counts once.

        Raises:
            KeyError: There is no such module.
        """
        paths = set(idle)
        inner = {path for path in paths if any(path.startswith(f"{other}.") for other in paths)}
        return sum(self.flops[path] for path in paths - inner)

    def find_share(self, idle: Iterable[str]) -> float:
        """The share of the network's FLOPs that a call costs in which some modules do not run.

        Args:
            idle: Their paths.

        Raises:
            KeyError: There is no such module.

        Example:
            >>> costs.find_share(find_cut(unet, 0).members)  # doctest: +SKIP
            0.0982
        """
        return (self.total - self.count_idle(idle)) / self.total


def measure_costs(network: nn.Module, run: Callable[[], object]) -> dict[str, float]:
    """FLOPs of every submodule as a share of the network's, by path.

    Args:
        network: The network itself, not what holds it.
        run: Calls the network once; what it returns is dropped.

    Raises:
        CapabilityError: `run` did not call the network, or that cost no FLOPs.
    """
    return measure(network, run).shares


def measure(network: nn.Module, run: Callable[[], object]) -> Measurement:
    """Count FLOPs and output bytes of every submodule in one network call.

    Compiled parts run eagerly meanwhile. Nothing stays on the network. What policies compute
    inside of it is not counted.

    Args:
        network: The network itself, not what holds it.
        run: Calls the network once, or its `forward`; what it returns is dropped.

    Raises:
        CapabilityError: `run` did not call the network, or that cost no FLOPs.
    """
    inner = getattr(network, "_orig_mod", network)
    flops: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    visits: Counter[str] = Counter()
    inputs: Counter[str] = Counter()
    with ExitStack() as stack:
        tally = Tally(stack.enter_context(make_counter()))
        stack.enter_context(tally.current())
        stack.enter_context(run_eagerly())
        for path, module in inner.named_modules():
            stack.enter_context(watch(path, module, tally, flops, sizes, visits, inputs))
        run()
        if "" not in flops and flops:  # its `forward` was called, not the network
            flops[""] = tally.total
    if not flops[""]:
        cls = type(inner).__name__
        reason = "made no matrix product" if sizes else "was not called"
        raise CapabilityError(
            f"the costs of {cls} cannot be measured: it {reason} in the measured run; measure the "
            "network itself, in a call that computes it"
        )
    return Measurement(dict(flops), dict(sizes), dict(visits), dict(inputs))


@contextmanager
def watch(
    path: str,
    module: nn.Module,
    tally: Tally,
    flops: Counter[str],
    sizes: Counter[str],
    visits: Counter[str],
    inputs: Counter[str],
) -> Iterator[None]:
    """Add what a module costs, returns and gets, and that it ran, to four counters."""
    begun: list[int] = []

    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = [*bind_tensors(module, args, kwargs).values()][:1]
        inputs[path] += count_bytes(first)
        begun.append(tally.total)

    def end(_: nn.Module, __: Any, output: Any) -> None:
        flops[path] += tally.total - begun.pop()
        sizes[path] += count_bytes(output)
        visits[path] += 1

    handles = [
        module.register_forward_pre_hook(begin, with_kwargs=True),
        module.register_forward_hook(end),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def make_counter() -> FlopCounterMode:
    """A counter that also knows what torch's own leaves out: attention on CPUs, int8 products."""
    known = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: count_attention,
        torch.ops.aten._int_mm: count_product,  # of quantised linears with int8 activations
    }
    return FlopCounterMode(display=False, custom_mapping=known)


def count_attention(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: Any, **__: Any
) -> int:
    """FLOPs of one attention, from shapes `[B, heads, tokens, channels]`."""
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def count_product(left: tuple[int, ...], right: tuple[int, ...], *_: Any, **__: Any) -> int:
    """FLOPs of a matrix product, from shapes `[M, K]` and `[K, N]`."""
    return 2 * left[0] * left[1] * right[1]


@contextmanager
def run_eagerly() -> Iterator[None]:
    """Without compiled graphs, inside of which nothing could be counted."""
    set_stance = getattr(torch.compiler, "set_stance", None)  # since torch 2.6
    if set_stance is None:
        yield
        return
    with set_stance("force_eager"):
        yield


def count_bytes(output: Any) -> int:
    """Bytes of the tensors in what a module returned."""
    return sum(each.numel() * each.element_size() for each in iter_tensors(output))


def iter_tensors(output: Any) -> Iterator[Tensor]:
    """The tensors in tuples, lists, mappings and outputs of diffusers."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from iter_tensors(list(output.values()))
    elif isinstance(output, tuple | list):
        for part in output:
            yield from iter_tensors(part)


MEASURED: WeakKeyDictionary[nn.Module, dict[Hashable, Measurement]] = WeakKeyDictionary()
"""What has been measured in this process."""


def measure_once(
    network: nn.Module,
    shape: Hashable,
    run: Callable[[], object],
    ran_whole: Callable[[], bool] = lambda: True,
) -> tuple[Measurement, bool]:
    """The costs of a network at some shape of its inputs, measured the first time they are needed.

    Args:
        network: The network itself.
        shape: What the costs depend on, such as shapes and types of the inputs.
        run: Calls the network once.
        ran_whole: Asked after the run, whether no module was left out in it. Otherwise the costs
            are not remembered.

    Returns:
        The costs, and whether `run` was called for them.

    Raises:
        CapabilityError: As `measure`.
    """
    inner: nn.Module = getattr(network, "_orig_mod", network)
    known = MEASURED.setdefault(inner, {})
    key = (shape, sum(1 for _ in inner.modules()))  # adapters add modules
    if key in known:
        return known[key], False
    found = measure(inner, run)
    if ran_whole():
        known[key] = found
    return found, True
