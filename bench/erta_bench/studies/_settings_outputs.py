"""Settings of forecasts and of what stands outside the network, and those of its modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from erta_bench.setting import PROFILE, Spec
from erta_bench.studies._settings import MethodSettings, continue_evenly, spread_evenly

STACK: Final = {"kind": ["block"], "span": True}
RELEASE: Final = {"interval": 4, "first": 3}
HERMITE: Final = {"basis": "hermite", "order": 2, "scale": 0.71, "over": "index", "since": 1}
"""The forecast of FreqCa, without its bands."""


def forecast(name: str, **options: object) -> Sequence[Spec]:
    """FORA, TaylorSeer or HiCache, with a single first step."""
    first = {} if name == "fora" else {"first": 1}  # FORA's own number
    return ({name: {**first, **options}},)


def spectrum(**options: object) -> Sequence[Spec]:
    """Spectrum."""
    return ({"spectrum": options},)


def freqca(**options: object) -> Sequence[Spec]:
    """FreqCa."""
    return ({"freqca": options},)


def extrapolate(**options: object) -> Sequence[Spec]:
    """Extrapolated attention."""
    return ({"attention_extrapolation": options},)


TAYLORSEER = MethodSettings(
    title="FORA, TaylorSeer and HiCache, on whole outputs and on modules",
    rows={
        f"{title}, {level}": forecast(name, level=level, **options)
        for title, name, options in (
            ("FORA, n = 2", "fora", {"interval": 2}),
            ("FORA, n = 3", "fora", {"interval": 3}),
            ("TaylorSeer, n = 2, order 1", "taylorseer", {"interval": 2, "order": 1}),
            ("TaylorSeer, n = 3, order 1", "taylorseer", {"interval": 3, "order": 1}),
            ("TaylorSeer, n = 3, order 2", "taylorseer", {"interval": 3, "order": 2}),
            ("TaylorSeer, n = 5, order 1", "taylorseer", {"interval": 5, "order": 1}),
            ("HiCache, n = 3, scale 0.5", "hicache", {"interval": 3, "order": 2, "scale": 0.5}),
            ("HiCache, n = 3, scale 0.7", "hicache", {"interval": 3, "order": 2, "scale": 0.7}),
        )
        for level in ("output", "modules")
    },
    baselines={**spread_evenly(25, 17, 10), **continue_evenly(25, 17, 10)},
)

SPECTRUM = MethodSettings(
    title="Spectrum's fit, a line, and both",
    rows={
        "growth 0.75, blend 1, the paper's": spectrum(growth=0.75, blend=1.0),
        "growth 0.75, blend 0.5": spectrum(growth=0.75, blend=0.5),
        "growth 0.75, blend 1, free mean": spectrum(growth=0.75, blend=1.0, free_mean=True),
        "growth 0.75, blend 0.5, free mean": spectrum(growth=0.75, blend=0.5, free_mean=True),
        "growth 0.75, the line alone": spectrum(growth=0.75, blend=0.0),
        "25 calls": spectrum(budget={"calls": 25}),
        "25 calls, free mean": spectrum(budget={"calls": 25}, free_mean=True),
        "half the work, block stack": spectrum(budget={"work": 25}, level="blocks"),
        "half the work, block stack, free mean": spectrum(
            budget={"work": 25}, level="blocks", free_mean=True
        ),
    },
    baselines={**spread_evenly(25, 14), **continue_evenly(25, 14)},
)

FREQCA = MethodSettings(
    title="FreqCa's bands, and the same forecast without them",
    rows={
        "interval 4, forecast alone": ({"refresh_interval": RELEASE}, {"forecaster": HERMITE}),
        "interval 4, cutoff 0.05": freqca(interval=4, cutoff=0.05),
        "interval 4, cutoff 0.1": freqca(interval=4),
        "interval 4, cutoff 0.1, dct": freqca(interval=4, transform="dct"),
        "interval 4, cutoff 0.3": freqca(interval=4, cutoff=0.3),
        "interval 4, everything reused": freqca(interval=4, cutoff=1.0),
        "interval 4, block stack, forecast alone": (
            {
                "at": {
                    "sites": STACK,
                    "when": {"refresh_interval": RELEASE},
                    "what": {"forecaster": HERMITE},
                }
            },
        ),
        "interval 4, block stack, cutoff 0.1": freqca(interval=4, level="blocks"),
        "25 calls": freqca(budget={"calls": 25}),
        "12 calls": freqca(budget={"calls": 12}),
    },
    baselines={
        "TaylorSeer, 25 calls": ({"taylorseer": {"budget": {"calls": 25}}},),
        "TaylorSeer, 12 calls": ({"taylorseer": {"budget": {"calls": 12}}},),
        **spread_evenly(25, 14, 12),
        **continue_evenly(25, 14, 12),
    },
)

FASTERCACHE = MethodSettings(
    title="The two halves of FasterCache",
    models=("shapes-unet", "shapes-wan", "shapes-flux"),
    rows={
        "cfg_cache, no bands": ({"cfg_cache": {"bands": False}},),
        "cfg_cache, no bands, start 0.2": ({"cfg_cache": {"bands": False, "start": 0.2}},),
        "cfg_cache with its bands": ("cfg_cache",),
        "attention_extrapolation": extrapolate(),
        "attention_extrapolation, plain reuse": extrapolate(most=0.0),
        "fastercache, both halves": ("fastercache",),
        "fastercache, no bands": ({"fastercache": {"bands": False}},),
    },
    own={
        "shapes-unet": {
            **{
                f"cfg_cache, no bands, period {n}, and a cut": (
                    {"cfg_cache": {"bands": False, "period": n}},
                    {"deepcache": {"interval": 2}},
                )
                for n in (5, 4)
            },
            "the cut alone, every second step": ({"deepcache": {"interval": 2}},),
        }
    },
    baselines={**spread_evenly(44, 37, 32, 25), **continue_evenly(44, 37, 32, 25)},
)

SMOOTHCACHE = MethodSettings(
    title="SmoothCache at half of the work",
    rows={
        name: ({"smoothcache": {"profile": PROFILE, "budget": {"work": 25}}},)
        for name in ("SmoothCache", "SmoothCache, lookback 8")
    },
    profilers={
        "SmoothCache": "smoothcache_profiler",
        "SmoothCache, lookback 8": {"smoothcache_profiler": {"lookback": 8}},
    },
    baselines={
        "FORA on modules, n = 2": forecast("fora", interval=2, level="modules"),
        "TaylorSeer on modules, n = 2": forecast("taylorseer", interval=2, level="modules"),
        **spread_evenly(25),
        **continue_evenly(25),
    },
)
