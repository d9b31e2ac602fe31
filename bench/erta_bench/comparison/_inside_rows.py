"""Rows of policies that work inside the network, in the order in which tables have them."""

from __future__ import annotations

from collections.abc import Mapping

from erta_bench.comparison._contender import (
    BUDGET,
    INTERVAL,
    PART,
    SOLVED,
    STEPS,
    THRESHOLD,
    WEIGHT,
    Contender,
    Spec,
    calibrate_with,
    policy,
)

# ClusCa's modules and forecast, with so many full steps spread evenly
SPREAD: Mapping[str, object] = {
    "sites": {"kind": ["attention", "cross", "mlp"]},
    "when": {"skip_policy": {"evenly": SOLVED}},
    "what": {"forecaster": {"basis": "taylor", "order": 2, "over": "index", "what": "output"}},
}
BLOCK_SUMS = calibrate_with("surrogate_profiler")
TABLE = calibrate_with("febcache_profiler", budget={"work": BUDGET})
# published for 3 steps, which cannot reach a third of the work
SMOOTH = calibrate_with("smoothcache_profiler", lookback=8)
RESTING = calibrate_with("l2c_profiler")
# all blocks but the first and the last
SPAN = {"kind": ["block"], "depth": "1:-1", "span": True, "by_list": True}
FEATURES = calibrate_with("feature_profiler", interval=12)
SPANS = calibrate_with("feature_profiler", sites=SPAN, interval=12)
HALF_GUIDANCE: Spec = {"cfg_cache": {"bands": False}}


def make_module_recipe(name: str, **options: object) -> Spec:
    """A recipe on the output of every attention and MLP, as it was published."""
    return {name: {"level": "modules", "interval": SOLVED, **options}}


def make_procache(**options: object) -> Spec:
    """ProCache with the most gradual plan of so much work; gaps as long as that needs."""
    return {"procache": {"budget": {"work": BUDGET}, "shortest": 0, "longest": 6, **options}}


def make_h2cache(**options: object) -> Spec:
    """H2-Cache with one threshold for both stages, since one number can be solved for."""
    return {"h2cache": {"tau1": SOLVED, "tau2": SOLVED, **options}}


def make_fastcache(**options: object) -> Spec:
    """FastCache with its threshold solved for."""
    return {"fastcache": {"threshold": SOLVED, **options}}


INSIDE: tuple[Contender, ...] = (
    policy("FORA, modules", make_module_recipe("fora"), search=INTERVAL),
    policy("TaylorSeer, modules", make_module_recipe("taylorseer", first=1), search=INTERVAL),
    policy("HiCache, modules", make_module_recipe("hicache", first=1), search=INTERVAL),
    policy("Spectrum, block stack", {"spectrum": {"level": "blocks", "budget": {"work": BUDGET}}}),
    policy("FreqCa, block stack", {"freqca": {"level": "blocks", "budget": {"work": BUDGET}}}),
    # its fresh tokens cost so much that no interval leaves half of the work: steps spread evenly
    policy(
        "ClusCa",
        {"cluster_refresh": {"of": {"at": SPREAD}}},
        search=STEPS,
        bound="what is no attention or MLP runs in every step",
    ),
    policy(
        "SmoothCache, up to 8 steps",
        {"smoothcache": {"profile": SMOOTH, "budget": {"work": BUDGET}}},
    ),
    policy("DeepCache", {"deepcache": {"interval": SOLVED}}, search=INTERVAL),
    policy(
        "DeepCache, branch 1", {"deepcache": {"interval": SOLVED, "branch": 1}}, search=INTERVAL
    ),
    policy(
        "CacheQuant, cut",
        {"cachequant": {"profile": FEATURES, "budget": {"work": BUDGET}}},
    ),
    policy(
        "CacheQuant, blocks",
        {"cachequant": {"profile": SPANS, "sites": SPAN, "budget": {"work": BUDGET}}},
    ),
    policy("PAB, spatial", {"pab": {"spatial": SOLVED}}, search=INTERVAL),
    policy(
        "AdaCorrection on FORA",
        # any shorter interval is corrected until nothing is reused
        {
            "adacorrection": {
                "policy": {"fora": {"level": "modules", "interval": 5}},
                "gamma": SOLVED,
            }
        },
        search=WEIGHT,
        bound="attention and MLPs run in every fifth step, and the rest in each",
    ),
    policy(
        "SpeCa",
        # two forecasts follow every full step at any threshold, so the full start is solved for
        {"speca": {"threshold": 0.3, "decay": 1.0, "floor": 0.0, "first": SOLVED, "order": 1}},
        search=STEPS,
        bound="beside its full steps, the last block runs in every step that is verified",
    ),
    policy(
        "L2C, greedy",
        {"l2c": {"profile": RESTING, "budget": {"work": BUDGET}}},
        bound="every second step is full",
    ),
    policy("FEB-Cache", {"febcache": {"profile": TABLE}}),
    policy("FEB-Cache, noise as it is", {"febcache": {"profile": TABLE, "noise": None}}),
    policy("ProCache", make_procache()),
    policy("ProCache, nothing refreshed", make_procache(select=False)),
    policy("CFG-Cache", {"cfg_cache": {"period": SOLVED}}, search=INTERVAL),
    policy(
        "CFG-Cache, no bands", {"cfg_cache": {"period": SOLVED, "bands": False}}, search=INTERVAL
    ),
    policy(
        "attention extrapolation",
        {"attention_extrapolation": {"interval": SOLVED}},
        search=INTERVAL,
    ),
    policy("FasterCache", {"fastercache": {"interval": SOLVED}}, search=INTERVAL),
    policy("H2-Cache", make_h2cache(), search=THRESHOLD),
    policy("H2-Cache, split after 3", make_h2cache(split=3), search=THRESHOLD),
    policy("first-block gate", {"first_block_gate": {"threshold": SOLVED}}, search=THRESHOLD),
    policy("FastCache", make_fastcache(), search=THRESHOLD),
    policy(
        "FastCache, affine",
        make_fastcache(surrogate="affine", profile=BLOCK_SUMS),
        search=THRESHOLD,
    ),
    policy(
        "FastCache, ridge",
        make_fastcache(surrogate="ridge", profile=BLOCK_SUMS),
        search=THRESHOLD,
    ),
    policy("BlockCache", {"blockcache": {"skip_ratio": SOLVED}}, search=PART),
    policy(
        "PreciseCache, flash", {"precisecache": {"variant": "flash", "alpha": SOLVED}}, search=PART
    ),
)
