"""Networks divided between two ranks: weights, channels and tokens, with ranks that disagree."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

SCRIPT = "strategy_worker.py"
Run = Callable[..., Any]
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def both(ranks: Run) -> Any:
    """Two processes that ran all of these, one after another."""
    networks = ["fsdp2", "tensor_parallel"]
    if find_spec("diffusers"):
        networks.append("context_parallel")
    return ranks(SCRIPT, networks, limit=240)


def check(found: list[dict[str, Any]], samples: list[Tensor], alone: list[Tensor]) -> None:
    """Ranks that wanted different steps computed the same, and lost nothing by it."""
    first, second = found
    # one rank would have reused where the other computed: in the network, that is a deadlock
    assert first["wanted"] != second["wanted"]
    wanted = zip(first["wanted"], second["wanted"], strict=True)
    assert first["computed"] == [i for i, pair in enumerate(wanted) if any(pair)]
    assert second["computed"] == first["computed"]
    assert 1 < len(first["computed"]) < len(first["wanted"])
    for rank in found:
        assert rank["votes"] == len(rank["wanted"]) - 1  # none at the first step
    for one, reference in zip(samples, alone, strict=True):
        assert torch.isfinite(one).all()
        torch.testing.assert_close(one, reference, **TOLERANCE)


@pytest.mark.slow
def test_fsdp2(both: Any) -> None:
    samples = both.tensor("fsdp2.sample")
    check(both("fsdp2"), samples, both.tensor("fsdp2.alone"))
    assert not torch.allclose(*samples)  # each rank sampled its own


@pytest.mark.slow
def test_tensor_parallel(both: Any) -> None:
    samples = both.tensor("tensor_parallel.sample")
    check(both("tensor_parallel"), samples, both.tensor("tensor_parallel.alone"))
    assert torch.equal(*samples)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("diffusers") is None, reason="needs diffusers")
@pytest.mark.parametrize(("name", "branches"), [("wan-euler", 2), ("flux", 1)])
def test_context_parallel_pipelines_of_diffusers(both: Any, name: str, branches: int) -> None:
    found = [
        {key: rank[f"{name}_{key}"] for key in ("wanted", "computed", "votes", "calls")}
        for rank in both("context_parallel")
    ]
    samples = both.tensor(f"context_parallel.{name}")
    check(found, samples, both.tensor(f"context_parallel.{name}_alone"))
    assert torch.equal(*samples)
    for rank in found:
        assert rank["calls"] == branches * len(rank["computed"])
