"""TeaCache's published polynomials, and the fit from sums."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from erta_framework import Profile
from erta_framework.errors import PolicyError, ProfileError
from erta_policies.constants import models, read_published
from erta_policies.shared import read_calibrated_range
from erta_policies.shared._change_profiler import ChangeSums
from erta_policies.teacache import TeaCache, TeaCacheProfiler
from erta_policies.teacache._polynomial import evaluate_polynomial, explain_variance, fit_polynomial


def profile_of(pairs: list[tuple[float, float]], samples: int = 1) -> Profile:
    """The profile that these changes of signal and output would have made."""
    sums = ChangeSums.empty(2)
    for d, y in pairs:
        # a signal that moves from 1 to 1 + d and an output from 1 to 1 + y, in float64
        sums.signal.index, sums.signal.signal = 0, torch.ones(1, 1, dtype=torch.float64)
        sums.target = torch.ones(1, 1, dtype=torch.float64)
        sums.add(1, torch.full((1, 1), 1 + d).double(), torch.full((1, 1), 1 + y).double(), True)
    names = ("samples", "distance", "powers", "products", "squares", "bins")
    return Profile(
        kind=TeaCacheProfiler().name,
        fingerprint={"signal": "latents", "target": "output"},
        statistics={name: getattr(sums, name).unsqueeze(0) for name in names},
        samples=samples,
    )


def seen(pairs: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """The pairs as the profiler sees them, in float32."""
    d = np.array([np.float32(np.float32(1 + d) - np.float32(1)) for d, _ in pairs], np.float64)
    y = np.array([np.float32(np.float32(1 + y) - np.float32(1)) for _, y in pairs], np.float64)
    return d, y


@pytest.mark.parametrize("model", models("teacache"))
def test_a_published_polynomial_is_evaluated_as_numpy_does(model: str) -> None:
    """`np.poly1d(coefficients)(d)`, which the published code uses: highest power first."""
    coefficients = TeaCache(model=model).source.coefficients
    assert len(coefficients) == 5
    for d in (0.0, 0.003, 0.02, 0.1, 0.3, 1.0):
        assert evaluate_polynomial(coefficients, d) == pytest.approx(
            float(np.poly1d(coefficients)(d)), rel=1e-12
        )


@pytest.mark.parametrize(
    ("model", "d", "change"),
    [
        # c4 alone at d = 0, and the sum of all five at d = 1
        ("flux.1-dev", 0.0, 0.264230861),
        ("flux.1-dev", 1.0, 267.169475051),
        ("wan2.1-t2v-14b", 0.0, -13.02252404),
        ("cogvideox-2b", 1.0, -9.762383134),
        ("open-sora-1.2", 1.0, 126.085519697),
    ],
)
def test_values_worked_out_by_hand(model: str, d: float, change: float) -> None:
    """Sums of the coefficients in the TeaCache repository (ali-vilab/TeaCache)."""
    assert evaluate_polynomial(TeaCache(model=model).source.coefficients, d) == pytest.approx(
        change, rel=1e-6
    )


@pytest.mark.parametrize(
    ("model", "negative", "positive"),
    [
        ("wan2.1-t2v-14b", (0.05, 0.10, 0.12), (0.14, 0.2)),
        ("wan2.1-t2v-1.3b-retention", (0.0, 0.003, 0.12), (0.01, 0.05)),
        ("wan2.1-t2v-14b-retention", (0.0, 0.004, 0.1), (0.02, 0.05)),
        ("mochi-1", (0.15, 0.2), (0.01, 0.1, 0.14)),
        ("hidream-i1-full", (0.08, 0.1), (0.01, 0.05)),
        ("lumina2-v2", (0.0, 0.01), (0.02, 0.1)),
    ],
)
def test_where_published_polynomials_are_negative(
    model: str, negative: tuple[float, ...], positive: tuple[float, ...]
) -> None:
    """Properties of the published coefficients: there the sum of changes falls."""
    coefficients = TeaCache(model=model).source.coefficients
    assert all(evaluate_polynomial(coefficients, d) < 0 for d in negative)
    assert all(evaluate_polynomial(coefficients, d) > 0 for d in positive)


def test_every_published_polynomial_names_its_source_and_signal() -> None:
    for model in models("teacache"):
        constants = read_published("teacache", model)
        assert constants["repository"].endswith("TeaCache")
        assert constants["license"].startswith("Apache-2.0")
        assert constants["paper"] == "arXiv 2411.19108"
        policy = TeaCache(model=model)
        assert policy.effective_threshold == min(constants["thresholds"])
        assert policy.traits.requires == {f"signal:{constants['signal']}"}
    retention = TeaCache(model="wan2.1-i2v-720p-retention")
    assert retention.traits.requires == {"signal:timestep_projection"}
    assert [part.name for part in retention.parts()] == ["warm_up", "tea_cache_rule"]
    assert retention.parts()[0].count(40) == 5  # type: ignore[attr-defined]
    hidream = TeaCache(model="hidream-i1-full")
    assert hidream.parts()[0].count(50) == 5  # type: ignore[attr-defined]
    flux = TeaCache(model="flux.1-dev")
    assert [part.name for part in flux.parts()] == ["warm_up", "last_step", "tea_cache_rule"]


# --------------------------------------------------------------------------------- fit
CURVES = [
    [(0.01 * k, 0.3 * (0.01 * k) ** 2 + 0.05) for k in range(1, 30)],
    [(0.005 * k, math.sin(40 * 0.005 * k) * 0.1 + 0.2) for k in range(1, 60)],
    [(2.0**-k, 3.0**-k) for k in range(0, 12)],
    [(5.0 * k, 0.1 * k) for k in range(1, 8)],
]


@pytest.mark.parametrize("pairs", CURVES)
def test_the_fit_equals_polyfit_on_the_raw_pairs(pairs: list[tuple[float, float]]) -> None:
    profile = profile_of(pairs)
    d, y = seen(pairs)
    expected = np.polyfit(d, y, 4)
    found = fit_polynomial(profile)
    # compared where it is used: along the differences that were seen
    at = np.linspace(d.min(), d.max(), 50)
    assert np.polyval(found, at) == pytest.approx(np.polyval(expected, at), rel=1e-6)
    scale = np.abs(d).max() ** np.arange(4, -1, -1)
    assert np.array(found) * scale == pytest.approx(
        expected * scale, rel=1e-6, abs=1e-6 * np.abs(expected * scale).max()
    )
    errors = y - np.polyval(expected, d)
    r2 = 1 - (errors**2).sum() / ((y - y.mean()) ** 2).sum()
    assert explain_variance(profile) == pytest.approx(r2, abs=1e-6)


def test_merged_profiles_fit_as_one() -> None:
    pairs = CURVES[1]
    whole = profile_of(pairs, samples=3)
    merged = Profile.merge([profile_of(pairs[k::3]) for k in range(3)])
    assert merged.samples == 3
    assert np.array(fit_polynomial(merged)) == pytest.approx(
        np.array(fit_polynomial(whole)), rel=1e-6
    )
    assert torch.equal(merged.statistics["bins"], whole.statistics["bins"])
    assert read_calibrated_range(merged) == read_calibrated_range(whole)


def test_the_range_holds_every_difference_to_the_width_of_a_bin() -> None:
    low, high = read_calibrated_range(profile_of([(0.02, 0.1), (0.3, 0.2), (0.05, 0.1)]))
    assert 0.02 / 1.13 < low <= 0.02
    assert 0.3 <= high < 0.3 * 1.13


def test_pairs_that_fix_no_polynomial_are_refused() -> None:
    with pytest.raises(ProfileError, match="4 pairs"):
        fit_polynomial(profile_of([(0.1 * k, 0.1) for k in range(1, 5)]))
    with pytest.raises(ProfileError, match="hardly vary"):
        fit_polynomial(profile_of([(0.1, 0.1)] * 20))


def test_merging_profiles_of_other_signals_is_refused() -> None:
    one = profile_of(CURVES[0])
    other = replace(one, fingerprint={**one.fingerprint, "signal": "timestep_embedding"})
    with pytest.raises(ProfileError, match="signal"):
        Profile.merge([one, other])


def test_an_unknown_model_lists_what_exists_and_how_to_calibrate() -> None:
    with pytest.raises(PolicyError, match=r"'sd3'.*flux\.1-dev.*erta calibrate"):
        _ = TeaCache(model="sd3").source


PAGE = Path(__file__).parents[3] / "docs/explanation/methods/teacache.md"


def test_the_table_of_the_page_is_what_is_published() -> None:
    rows = re.findall(
        r"^\| `([^`]+)` \| `([^`]+)` \| (.+) / (\d) \| (.+) \|$",
        PAGE.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert [row[0] for row in rows] == list(models("teacache"))
    for model, signal, first, last, thresholds in rows:
        source = TeaCache(model=model).source
        begin = f"{source.first:.0%}" if isinstance(source.first, float) else f"{source.first}"
        assert (signal, first.replace(" ", ""), int(last)) == (source.signal, begin, source.last)
        published_ones = [float(each) for each in thresholds.split(",")]
        assert published_ones == read_published("teacache", model)["thresholds"]
