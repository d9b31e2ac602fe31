"""A callable class for `ray.data`: it holds a pipeline, and samples the prompts of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from erta_framework.config import build_policies
from erta_framework.errors import ErtaError, InputError
from erta_framework.plugins import Policy
from erta_integrations.fabric.jobs import (
    Item,
    PipelineSource,
    SampledItem,
    SamplerSource,
    SampleSource,
)

Columns = dict[str, NDArray[Any]]
NEW = ("sample", "network_calls", "branch_calls")
"""Columns that a batch gets."""


class PromptSampler:
    """Samples the rows of a batch; for `map_batches` of `ray.data`, an object an actor.

    A row has a `prompt` and a `seed`. Its other columns may be settings of its request: `steps` and
    `guidance`, with a pipeline also `height`, `width` and `frames`; any other column is passed on.
    The policies are attached to the pipeline while it samples. The same prompt, seed and settings
    give the same array on any actor, and the array that `erta sample` writes in a job.

    Args:
        make: Makes what samples, once an actor: a diffusers pipeline on its device, what
            `erta_integrations.diffusers.load` returns, or a `Sampler` and its model.
        policies: For a pipeline: policies in call order, or their names and options as in a
            configuration. A `Sampler` brings its own.
        options: For a pipeline: settings of every request, such as `{"steps": 50}`.
        batch_size: Rows of equal settings that a `Sampler` samples together. At 1 a sample depends
            on its own row alone; larger batches may change the last bits of its numbers.

    Raises:
        InputError: `batch_size` is below 1, or policies or options are given beside a `Sampler`.

    Example:
        >>> from erta_framework import Sampler
        >>> from erta_framework.testing import AffineFlow
        >>> held = PromptSampler(lambda: (Sampler(num_steps=4, accelerator="cpu"), AffineFlow()))
        >>> out = held({"prompt": np.array(["a", "b"]), "seed": np.array([0, 1])})
        >>> out["sample"].shape, out["network_calls"].tolist()
        ((2, 2, 3, 4, 5), [8, 8])
    """

    def __init__(
        self,
        make: Callable[[], Any],
        policies: Sequence[Policy | str | Mapping[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
        *,
        batch_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}, it must be at least 1")
        self._source = open_held(make(), policies, options or {})
        self._size = batch_size

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> Columns:
        """Sample a batch.

        Args:
            batch: Columns of N rows.

        Returns:
            The same columns and, for each row, `sample` (`[N, C, ...]` float32; an array of N
            objects where rows differ in size), `network_calls` made, and `branch_calls` asked for.

        Raises:
            InputError: A column is missing or has a name of a new one, or a row is wrong; names it.
        """
        items = self._read_rows(batch)
        made: dict[int, SampledItem] = {}
        for group in self._list_groups(items):
            sampled = self._source.sample(group)
            made |= {item.index: each for item, each in zip(group, sampled, strict=True)}
        rows = [made[item.index] for item in items]
        traces = [row.facts["trace"] for row in rows]
        arrays = [row.tensors["sample"].to(torch.float32).numpy() for row in rows]
        return {
            **batch,
            "sample": stack(arrays),
            "network_calls": np.array([trace["network_calls"] for trace in traces]),
            "branch_calls": np.array([trace["branch_calls"] for trace in traces]),
        }

    def _list_groups(self, items: Sequence[Item]) -> list[list[Item]]:
        """Rows that are sampled together."""
        ordered = sorted(items, key=lambda item: item.settings)
        groups: list[list[Item]] = []
        for _, alike in groupby(ordered, key=lambda item: item.settings):
            rows = list(alike)
            for start in range(0, len(rows), self._size):
                groups.append(rows[start : start + self._size])
        return groups

    def _read_rows(self, batch: Mapping[str, NDArray[Any]]) -> list[Item]:
        for name in ("prompt", "seed"):
            if name not in batch:
                raise InputError(
                    f"the batch has columns {', '.join(batch)}, and no {name!r}; add it to the "
                    "data set: a sample is decided by its prompt and its seed"
                )
        taken = [name for name in NEW if name in batch]
        if taken:
            raise InputError(f"the batch has a column {taken[0]!r} already; rename or drop it")
        names = [name for name in batch if name in self._source.known]
        items = []
        for index, (prompt, seed) in enumerate(zip(batch["prompt"], batch["seed"], strict=True)):
            values = {name: as_plain(batch[name][index]) for name in names}
            asked = {name: value for name, value in values.items() if value is not None}
            row = f"row {index} of the batch ({str(prompt)!r})"
            number = as_plain(seed)
            if type(number) is not int:
                raise InputError(f"{row}: seed is {number!r}; it must be an integer")
            try:
                self._source.check(asked)
            except ErtaError as error:
                raise InputError(f"{row}: {error}") from error
            items.append(Item(index, str(prompt), number, asked))
        return items


def open_held(
    made: Any,
    policies: Sequence[Policy | str | Mapping[str, Any]],
    options: Mapping[str, Any],
) -> SampleSource:
    """What was made, as a source of samples.

    Raises:
        InputError: Policies or options are given beside a `Sampler`.
    """
    if isinstance(made, tuple):
        sampler, model = made
        if policies or options:
            raise InputError(
                "policies and options are for a pipeline; give those of a Sampler to the Sampler"
            )
        return SamplerSource(sampler, model, sampler.device)
    from erta_integrations.diffusers import LoadedPipeline

    loaded = isinstance(made, LoadedPipeline)
    run = made if loaded else LoadedPipeline(made, type(made).__name__)
    return PipelineSource(run, build_policies(policies), options)


def as_plain(value: Any) -> Any:
    """A cell as Python has it; None where it is empty."""
    plain = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    if not isinstance(plain, float):
        return plain
    # a column of integers with an empty cell has become one of floats, and the cell NaN
    return None if math.isnan(plain) else int(plain) if plain.is_integer() else plain


def stack(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Arrays as one column."""
    if len({array.shape for array in arrays}) <= 1:
        return np.stack(arrays)
    column = np.empty(len(arrays), dtype=object)
    column[:] = arrays
    return column
