"""`erta bench masked-speed`: a call on part of the positions beside the full pass, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from erta_bench.core import Bench, Row
from erta_framework.masked import select_rows
from erta_integrations.language import KeyValueStore
from erta_integrations.words import Size, WordsModel, WordsNetwork, load_words

COLUMNS = {
    "share": "rows",
    "seconds": "seconds",
    "seconds_ratio": "of the full pass",
    "speedup": "faster",
    "ideal": "ideal",
    "reached": "reached",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedSetting:
    """Sizes of a network with random weights, and of its input."""

    length: int = 512
    batch: int = 4
    width: int = 384
    heads: int = 6
    layers: int = 6
    repeats: int = 7


def measure_speed(
    setting: SpeedSetting,
    shares: Sequence[float] = (1.0, 0.75, 0.5, 0.25, 0.125, 0.03),
    command: str = "masked-speed",
) -> Bench:
    """Time one network call on a share of the positions, against the full pass without a cache.

    The calls take turns, so that other load meets all of them alike; the median of processor
    seconds counts. What is reached is the speed-up as a part of the ideal, one by the share.

    Args:
        setting: Sizes.
        shares: Parts of the positions.
        command: Named in the result.
    """
    torch.manual_seed(0)
    size = Size(symbols=27, width=setting.width, heads=setting.heads, layers=setting.layers)
    model = WordsModel(WordsNetwork(size).eval().requires_grad_(False), load_words())
    ids = torch.randint(27, (setting.batch, setting.length))
    calls: dict[float | None, Callable[[], object]] = {None: lambda: model.run(ids)}
    for share in shares:
        calls[share] = make_call(model, ids, share)
    seconds: dict[float | None, list[float]] = {key: [] for key in calls}
    with torch.no_grad():
        for _ in range(setting.repeats + 1):
            for key, call in calls.items():
                started = time.process_time()
                call()
                seconds[key].append(time.process_time() - started)
    taken = {key: median(values[1:]) for key, values in seconds.items()}
    rows: list[Row] = [
        {"share": None, "seconds": taken[None], "seconds_ratio": 1.0, "speedup": 1.0}
    ]
    for share in shares:
        ratio = taken[share] / taken[None]
        rows.append(
            {
                "share": share,
                "seconds": taken[share],
                "seconds_ratio": ratio,
                "speedup": 1 / ratio,
                "ideal": 1 / share,
                "reached": share / ratio,
            }
        )
    facts = {
        name: getattr(setting, name)
        for name in ("length", "batch", "width", "heads", "layers", "repeats")
    }
    return Bench(command, rows, COLUMNS, {**facts, "threads": torch.get_num_threads()})


def make_call(model: WordsModel, ids: torch.Tensor, share: float) -> Callable[[], object]:
    """A call on a share of the positions, against keys and values of a full pass."""
    store = KeyValueStore()
    model.run(ids, store=store)
    count = max(1, round(share * ids.shape[1]))
    order = torch.rand(ids.shape).argsort(1).argsort(1)
    wanted = order < count
    # what chooses the rows is part of the cost
    return lambda: model.run(ids, store=store, rows=select_rows(wanted))
