"""What was published of TeaCache's schedules for Wan, and why weights are needed to check it."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from erta_policies.constants import read_published
from erta_policies.teacache import TeaCacheRule
from erta_policies.teacache._schedule import walk_changes

PAGE = Path(__file__).parents[3] / "docs/explanation/methods/teacache.md"
# latencies of the README of ali-vilab/TeaCache for Wan 2.1: full, then one a threshold
LATENCIES = {
    "wan2.1-t2v-1.3b": (175.0, 117.0, 110.0, 88.0),
    "wan2.1-t2v-14b": (55.0, 38.0, 30.0, 27.0),
}


def test_the_page_says_which_steps_the_published_latencies_would_be() -> None:
    """README of ali-vilab/TeaCache (Wan 2.1): seconds and minutes at the published thresholds.

    Not reproduced: how many steps a threshold computes follows from weights that do not ship.
    """
    rows = re.findall(
        r"^\| `(wan2\.1-t2v-[^`]+)` \| 50 \| ([\d., ]+) \| (.+) \| ([\d, ]+) \|$",
        PAGE.read_text(encoding="utf-8"),
        re.M,
    )
    assert [row[0] for row in rows] == list(LATENCIES)
    for model, thresholds, reported, steps in rows:
        full, *latencies = LATENCIES[model]
        assert [float(t) for t in thresholds.split(", ")] == read_published("teacache", model)[
            "thresholds"
        ]
        assert [float(n) for n in re.findall(r"\d+", reported)] == [full, *latencies]
        assert steps == ", ".join(f"{50 * seconds / full:.0f}" for seconds in latencies)


def sinusoid(times: Tensor, dim: int = 256) -> Tensor:
    """Wan's sinusoid of timesteps `[T]`, the input of its time embedding, `[T, dim]`."""
    half = torch.arange(dim // 2, dtype=torch.float64)
    angles = times[:, None] * torch.exp(-math.log(10_000) * half / (dim // 2))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


@pytest.mark.parametrize("shift", [3.0, 5.0, 8.0])
def test_the_bare_sinusoid_is_no_stand_in_for_the_embedding(shift: float) -> None:
    """On it the three published thresholds of Wan 2.1 1.3B compute the same number of steps.

    The README of ali-vilab/TeaCache reports three latencies for them, 117, 110 and 88 of 175 s.
    """
    even = torch.linspace(1, 1 / 1000, 51, dtype=torch.float64)[:-1]
    signal = sinusoid(1000 * shift * even / (1 + (shift - 1) * even))
    changes = [0.0] + [float((b - a).abs().mean() / a.abs().mean()) for a, b in pairwise(signal)]
    thresholds = read_published("teacache", "wan2.1-t2v-1.3b")["thresholds"]
    source = TeaCacheRule(model="wan2.1-t2v-1.3b").source
    predicted = [source.change(change, False, False) for change in changes]
    counts = {len(walk_changes(predicted, threshold, {0, 49})) for threshold in thresholds}
    assert len(counts) == 1
    assert min(counts) >= 40
