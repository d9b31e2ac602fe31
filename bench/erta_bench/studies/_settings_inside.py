"""Settings of methods that leave out parts of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from erta_bench.setting import Spec
from erta_bench.studies._settings import MethodSettings, Rows, continue_evenly, spread_evenly

SECOND: Final[Spec] = {"skip_policy": {"evenly": 25}}
"""Every second step."""
WINDOW: Final = [100, 800]
"""Timesteps between which diffusers' PAB reuses."""


def center_steps(interval: int, formula: str) -> Sequence[Spec]:
    """DeepCache's cut at branch 0, with the authors' steps for Stable Diffusion."""
    steps = {"interval": interval, "center": 15, "power": 1.4, "formula": formula}
    return ({"deepcache": {"branch": 0, "when": {"centered_steps": steps}}},)


def gate_stages(options: Mapping[str, object]) -> Rows:
    """H2-Cache with low thresholds, with those of its experiments, and with fixed pooling."""
    high = {"tau1": 0.15, "tau2": 0.22, **options}
    return {
        "H2-Cache, 0.05 and 0.08": ({"h2cache": {"tau1": 0.05, "tau2": 0.08, **options}},),
        "H2-Cache, 0.15 and 0.22": ({"h2cache": high},),
        "H2-Cache, 0.15 and 0.22, fixed pooling": ({"h2cache": {**high, "fixed_pooling": True}},),
    }


DEEPCACHE = MethodSettings(
    title="DeepCache's cuts and steps",
    models=("shapes-unet",),
    rows={
        **{
            f"N = {n}, b = {b}": ({"deepcache": {"interval": n, "branch": b}},)
            for n in (2, 3, 5)
            for b in (0, 1, 2)
        },
        **{
            f"{n} even steps, b = {b}": (
                {"deepcache": {"branch": b, "when": {"skip_policy": {"evenly": n}}}},
            )
            for n in (25, 17, 10)
            for b in (0, 1)
        },
        **{
            f"N = {n}, b = 0, around step 15, {formula}": center_steps(n, formula)
            for n in (3, 5)
            for formula in ("release", "signed")
        },
    },
    baselines={
        **spread_evenly(38, 35, 32, 26, 20, 17, 14, 10),
        **continue_evenly(38, 32, 26, 20, 14),
    },
)

CLUSCA = MethodSettings(
    title="ClusCa's fresh tokens",
    rows={
        name: ({"clusca": {"interval": 3, "order": 1, **options}},)
        for name, options in {
            "ratio 0, which is TaylorSeer": {"ratio": 0.0},
            "ratio 0.03": {"ratio": 0.03},
            "ratio 0.1": {"ratio": 0.1},
            "ratio 0.1, 4 clusters": {"ratio": 0.1, "clusters": 4},
            "ratio 0.3": {"ratio": 0.3},
            "ratio 0.6": {"ratio": 0.6},
        }.items()
    },
    baselines={**spread_evenly(21, 18), **continue_evenly(21, 18)},
)

PAB = MethodSettings(
    title="PAB's ranges",
    rows={f"spatial {n}": ({"pab": {"spatial": n, "window": WINDOW}},) for n in (2, 4)},
    own={
        "shapes-wan": {
            "spatial 2, cross 6": ({"pab": {"spatial": 2, "cross": 6, "window": WINDOW}},)
        }
    },
    baselines={
        **{
            f"TaylorSeer on modules, n = {n}": (
                {"taylorseer": {"interval": n, "order": 1, "first": 1, "level": "modules"}},
            )
            for n in (2, 3)
        },
        **spread_evenly(45, 41),
        **continue_evenly(45, 41),
    },
)

H2CACHE = MethodSettings(
    title="H2-Cache, and one gate",
    rows={
        **gate_stages({}),
        **{
            f"one gate, {bound}": ({"first_block_gate": {"threshold": bound}},)
            for bound in (0.05, 0.1, 0.2)
        },
        "one gate, 0.1, on every second step": (
            SECOND,
            {"first_block_gate": {"threshold": 0.1}},
        ),
    },
    own={"shapes-wan": gate_stages({"split": 3})},
    baselines={**spread_evenly(40, 37, 33, 27, 23, 17), **continue_evenly(40, 37, 27, 17)},
)

PRECISECACHE = MethodSettings(
    title="BlockCache, and the variants of PreciseCache",
    rows={
        "blockcache, 40 %": ({"blockcache": {"skip_ratio": 0.4}},),
        "blockcache, 60 %": ({"blockcache": {"skip_ratio": 0.6}},),
        "blockcache, 40 %, on every second step": (SECOND, {"blockcache": {"skip_ratio": 0.4}}),
        **{
            f"PreciseCache {name}": ({"precisecache": {"variant": name}},)
            for name in ("base", "turbo", "flash")
        },
    },
    baselines={**spread_evenly(37, 32, 27, 18), **continue_evenly(37, 32, 27, 18)},
)
