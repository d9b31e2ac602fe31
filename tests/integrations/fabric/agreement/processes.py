"""What every worker script does: join the group, run scenarios, write what they found."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

Scenario = Callable[[], Mapping[str, Any]]
"""Runs on every rank; tensors in what it returns are saved as tensors, the rest as JSON."""

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
counted: dict[str, int] = {}


def main(scenarios: Mapping[str, Scenario]) -> None:
    """Run the scenarios named on the command line."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    out = Path(os.environ["RANKS_OUT"])
    store = dist.FileStore(os.environ["RANKS_STORE"], WORLD)
    dist.init_process_group(
        "gloo", store=store, rank=RANK, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    for name in ("all_reduce", "all_gather"):
        setattr(dist, name, counting(name, getattr(dist, name)))
    facts: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name in sys.argv[1:]:
        found = dict(scenarios[name]())
        tensors |= {f"{name}.{k}": v.contiguous() for k, v in found.items() if torch.is_tensor(v)}
        facts[name] = {k: v for k, v in found.items() if not torch.is_tensor(v)}
    save_file({"rank": torch.tensor(RANK), **tensors}, out / f"{RANK}.safetensors")
    (out / f"{RANK}.json").write_text(json.dumps(facts), encoding="utf-8")
    sys.stdout.flush()
    meet(store)
    os._exit(0)  # a group that lost a rank waits when it is destroyed


def meet(store: dist.Store) -> None:
    """Wait for the ranks that live: one that ends first closes the connections of the rest."""
    together = int(os.environ["RANKS_SURVIVORS"])
    store.add("ended", 1)
    while store.add("ended", 0) < together:
        time.sleep(0.02)


def counting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """A collective that is counted, whoever calls it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        counted[name] = counted.get(name, 0) + 1
        return original(*args, **kwargs)

    return call
