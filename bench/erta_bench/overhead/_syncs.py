"""Counts device synchronisations where they happen: in the dispatcher and in Python reads.

A synchronisation is an operation whose result the host must wait for: reading a number, choosing a
shape by values, or copying to the host. On the CPU nothing waits, but the same operations run, so
the count holds for an accelerator as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READING = frozenset(
    {
        "_local_scalar_dense",  # item(), float(), bool(), if tensor
        "equal",
        "nonzero",
        "masked_select",
        "unique_dim",
        "_unique",
        "_unique2",
        "unique_consecutive",
        "bincount",
    }
)
"""Operations whose result or whose shape the host must wait for."""

PYTHON_READS = {
    "tolist": Tensor.tolist,
    "numpy": Tensor.numpy,
    "__array__": Tensor.__array__,
    "cpu": Tensor.cpu,
}
"""Reads that copy host memory without an operation; on an accelerator the dispatcher sees them."""


class SyncCounter:
    """Counts synchronisations in a `with` block, by operation.

    Example:
        >>> with SyncCounter() as syncs:
        ...     _ = float(torch.ones(3).sum())
        >>> syncs.total
        1
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._modes = (_Functions(self.counts), _Operations(self.counts))

    @property
    def total(self) -> int:
        """Number of synchronisations."""
        return self.counts.total()

    def __str__(self) -> str:
        return ", ".join(f"{name} x{count}" for name, count in sorted(self.counts.items()))

    def __enter__(self) -> SyncCounter:
        for mode in self._modes:
            mode.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)  # type: ignore[no-untyped-call]


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._counts = counts

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in READING or _copies_to_host(name, args, result) or _indexes_by_mask(name, args):
            self._counts[name] += 1
        return result


class _Functions(TorchFunctionMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        for name, method in PYTHON_READS.items():
            if func is method and args[0].device.type == "cpu":
                self._counts[name] += 1
        return func(*args, **(kwargs or {}))


def _copies_to_host(name: str, args: tuple[Any, ...], result: Any) -> bool:
    if name not in ("_to_copy", "copy_"):
        return False
    source = args[1] if name == "copy_" else args[0]
    moved = isinstance(source, Tensor) and isinstance(result, Tensor)
    return moved and source.device.type != "cpu" and result.device.type == "cpu"


def _indexes_by_mask(name: str, args: tuple[Any, ...]) -> bool:
    if name not in ("index", "index_put", "index_put_"):
        return False
    return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])
