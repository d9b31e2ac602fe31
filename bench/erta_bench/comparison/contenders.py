"""The rows: one line adds one. `UNLISTED` says why an installed policy has none.

A rule that looks at the block stack decides over the whole batch here (`per_sample=False`), as
published: the stack cannot be split, so one sample would make all compute.

The file is long because it is one table; nothing in it is computed.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from erta_bench.comparison._contender import (
    BUDGET,
    INTERVAL,
    PART,
    PARTS,
    RATIOS,
    SOLVED,
    STEPS,
    THRESHOLD,
    TOLERANCE,
    WEIGHT,
    Contender,
    ListedSteps,
    Spec,
    calibrate_with,
    learned,
    mix,
    other,
    own,
    plain,
    policy,
)

# ClusCa's modules and forecast, with so many full steps spread evenly
SPREAD: Mapping[str, object] = {
    "sites": {"kind": ["attention", "cross", "mlp"]},
    "when": {"skip_policy": {"evenly": SOLVED}},
    "what": {"forecaster": {"basis": "taylor", "order": 2, "over": "index", "what": "output"}},
}
RESIDUAL = calibrate_with("residual_profiler")
MAG = calibrate_with("magcache_profiler")
MAG_HALF = calibrate_with("magcache_profiler", steps=25)
MEAN = calibrate_with("meancache_profiler")
TEA = calibrate_with("teacache_profiler", signal="timestep_embedding")
TEA_INPUT = calibrate_with("teacache_profiler", signal="modulated_input")
TEA_PROMPT = calibrate_with("regression_profiler")
BLOCK_SUMS = calibrate_with("surrogate_profiler")
CODEBOOK = calibrate_with("codebook_profiler")
# at the latent seam, which serves the trunk as well
SENSITIVITY = calibrate_with("sensitivity_profiler", seam="latent")
TABLE = calibrate_with("febcache_profiler", budget={"work": BUDGET})
# published for 3 steps, which cannot reach a third of the work
SMOOTH = calibrate_with("smoothcache_profiler", lookback=8)
RESTING = calibrate_with("l2c_profiler")
ALL_TIMES = (-1, 1001)
# all blocks but the first and the last
SPAN = {"kind": ["block"], "depth": "1:-1", "span": True, "by_list": True}
FEATURES = calibrate_with("feature_profiler", interval=12)
SPANS = calibrate_with("feature_profiler", sites=SPAN, interval=12)

CHANGES = calibrate_with("cem_profiler")

SCHEDULE: Spec = {"skip_policy": {"profile": RESIDUAL, "calls": BUDGET}}
EVENLY: Spec = {"skip_policy": {"evenly": BUDGET}}
MULTISTEP: Spec = {"multistep_schedule": {"profile": RESIDUAL, "budget": {"calls": BUDGET}}}
FITTED_WALK = calibrate_with("fitted_profiler", schedule=SCHEDULE)
FITTED = calibrate_with("fitted_profiler", schedule=MULTISTEP)
EXACT = calibrate_with(
    "end_to_end_profiler", schedule=MULTISTEP, target="exact", steps_within=4, refine=1
)
CORRECTED: Spec = {"error_linearizer": {"profile": RESIDUAL}}
LINE: Spec = {"forecaster": {"basis": "newton", "order": 1}}
TAYLOR: Spec = {"forecaster": {"basis": "taylor", "order": 1, "over": "index"}}
FROM_THE_END: Spec = {
    "refresh_interval": {"budget": {"calls": BUDGET}, "first": 3, "counting": "fora"}
}
EVEN: Spec = {"refresh_interval": {"budget": {"calls": BUDGET}, "first": 1, "counting": "even"}}
PARABOLA: Spec = {"forecaster": {"basis": "newton", "order": 2}}
EASY: Spec = {"easycache": {"threshold": SOLVED}}
MAGNITUDE: Spec = {"magcache": {"profile": MAG, "threshold": SOLVED, "max_skips": 6}}
PATH: Spec = {"meancache_schedule": {"profile": MEAN, "calls": BUDGET}}
PLANNED: Spec = {"planned_schedule": {"profile": RESIDUAL, "budget": {"calls": BUDGET}}}
FORESEEN: Spec = {
    "planned_schedule": {"profile": RESIDUAL, "budget": {"calls": BUDGET}, "cost": "forecast"}
}


SEARCHED = calibrate_with("budcache_profiler", samples=1, budget={"calls": BUDGET})
SEARCHED_FOR_LINE = calibrate_with(
    "budcache_profiler", samples=1, budget={"calls": BUDGET}, predictor=LINE
)
# released lists of LeMiCa's code: for Wan 2.1 1.3B, and the shortest for HunyuanVideo 1.5
LEMICA = ListedSteps(
    "steps",
    50,
    (
        "0-12,14,16,18,21,24,29,35,40,44,47,48,49",
        "0-9,11,13,16,20,26,33,40,45,48,49",
        "0-8,10,13,18,25,32,39,46,49",
        "0-5,7,10,16,23,30,37,44,49",
        "0,1,3,5,9,17,25,33,41,49",
    ),
)


def make_teacache(**options: object) -> Spec:
    """TeaCache at the trunk seam, its polynomial fitted to a profile."""
    return {"teacache": {"threshold": SOLVED, "per_sample": False, **options}}


def make_resampled_magcache(how: str) -> Spec:
    """MagCache with a table for half as many steps."""
    settings = {"profile": MAG_HALF, "resample": how, "threshold": SOLVED, "max_skips": 6}
    return {"magcache": {**settings, "allow": ["num_steps", "sigma_grid"]}}


def make_forecast_recipe(name: str, **options: object) -> Spec:
    """A recipe on whole outputs with the video models' one first step, in so many calls."""
    return {name: {"budget": {"calls": BUDGET}, "first": 1, **options}}


def make_sencache(**options: object) -> Spec:
    """SenCache with one tolerance for all steps, since one number can be solved for."""
    return {
        "sencache": {
            "profile": SENSITIVITY,
            "eps_start": SOLVED,
            "eps_main": SOLVED,
            "max_skips": 10,
            "per_sample": False,
            **options,
        }
    }


def make_prompttea(**options: object) -> Spec:
    """PromptTea's regression, fitted to a profile, with both branches run."""
    return {"prompttea": {"profile": TEA_PROMPT, "threshold": SOLVED, **options}}


def make_module_recipe(name: str, **options: object) -> Spec:
    """A recipe on the output of every attention and MLP, as it was published."""
    return {name: {"level": "modules", "interval": SOLVED, **options}}


def make_procache(**options: object) -> Spec:
    """ProCache with the most gradual plan of so much work; gaps as long as that needs."""
    return {"procache": {"budget": {"work": BUDGET}, "shortest": 0, "longest": 6, **options}}


HALF_GUIDANCE: Spec = {"cfg_cache": {"bands": False}}


def make_h2cache(**options: object) -> Spec:
    """H2-Cache with one threshold for both stages, since one number can be solved for."""
    return {"h2cache": {"tau1": SOLVED, "tau2": SOLVED, **options}}


def make_fastcache(**options: object) -> Spec:
    """FastCache with its threshold solved for."""
    return {"fastcache": {"threshold": SOLVED, **options}}


CONTENDERS: tuple[Contender, ...] = (
    plain("plain, same solver"),
    plain("plain UniPC", "unipc"),
    plain("plain DPM-Solver++ 2M", "dpmpp"),
    plain("plain Heun", "heun", order=2),
    plain("plain AB2", "ab2"),
    # ------------------------------------------------------------------ policies
    policy("ERTACache", {"ertacache": {"profile": RESIDUAL, "calls": BUDGET}}),
    policy("MeanCache A", {"meancache": {"profile": MEAN, "calls": BUDGET}}),
    policy("MeanCache B", {"meancache": {"profile": MEAN, "calls": BUDGET, "variant": "B"}}),
    policy("MeanCache C", {"meancache": {"profile": MEAN, "calls": BUDGET, "variant": "C"}}),
    policy("EasyCache", EASY, search=THRESHOLD),
    policy("TeaCache", make_teacache(profile=TEA), search=THRESHOLD, seam="trunk"),
    policy(
        "TeaCache, block input", make_teacache(profile=TEA_INPUT), search=THRESHOLD, seam="trunk"
    ),
    policy("MagCache", MAGNITUDE, search=THRESHOLD, seam="trunk"),
    policy(
        "MagCache, table of 25 steps",
        make_resampled_magcache("nearest"),
        search=THRESHOLD,
        seam="trunk",
    ),
    policy(
        "MagCache, table of 25 steps, consistent",
        make_resampled_magcache("consistent"),
        search=THRESHOLD,
        seam="trunk",
    ),
    policy("TaylorSeer, whole output", make_forecast_recipe("taylorseer")),
    policy("HiCache, whole output", make_forecast_recipe("hicache")),
    policy("Spectrum, whole output", {"spectrum": {"budget": {"calls": BUDGET}}}),
    policy(
        "Spectrum, whole output, free mean",
        {"spectrum": {"budget": {"calls": BUDGET}, "free_mean": True}},
    ),
    policy("FreqCa, whole output", {"freqca": {"budget": {"calls": BUDGET}}}),
    policy("FORA, whole output", {"fora": {"budget": {"calls": BUDGET}}}),
    policy(
        "FBCache",
        {"fbcache": {"threshold": SOLVED, "per_sample": False}},
        search=THRESHOLD,
        seam="trunk",
    ),
    policy(
        "DiCache",
        {"dicache": {"threshold": SOLVED, "limit": 2.0, "per_sample": False}},
        search=THRESHOLD,
        seam="trunk",
    ),
    policy(
        "DiCache, difference",
        {
            "dicache": {
                "threshold": SOLVED,
                "limit": 2.0,
                "error": "difference",
                "per_sample": False,
            }
        },
        search=THRESHOLD,
        seam="trunk",
    ),
    policy("SenCache", make_sencache(), search=TOLERANCE, seam="trunk"),
    policy("PromptTea, fixed threshold", make_prompttea(), search=THRESHOLD, seam="trunk"),
    policy(
        "PromptTea, branch substituted",
        make_prompttea(codebook=CODEBOOK, codebook_threshold=0.8),
        search=THRESHOLD,
        seam="trunk",
    ),
    policy(
        "PromptTea, substituted, as in the script",
        make_prompttea(codebook=CODEBOOK, codebook_threshold=0.8, counting="script"),
        search=THRESHOLD,
        seam="trunk",
    ),
    policy("LFCache", {"lfcache": {"alpha": SOLVED}}, search=PART),
    policy(
        "LFCache, last full",
        {"lfcache": {"alpha": SOLVED, "reference": "last_full"}},
        search=PART,
    ),
    policy("SeaCache, latents", {"seacache": {"threshold": SOLVED}}, search=THRESHOLD),
    policy(
        "SeaCache, latents, as released",
        {"seacache": {"threshold": SOLVED, "order": 0, "max_consecutive": None}},
        search=THRESHOLD,
    ),
    policy("CEM + TaylorSeer's line", {"cem": {"profile": CHANGES, "calls": BUDGET}}, TAYLOR),
    policy("BudCache search, reuse", {"budcache": {"profile": SEARCHED}}),
    policy("LeMiCa's steps, reuse", {"skip_policy": {"steps": LEMICA}}),
    # ------------------------------------------- policies that work inside the network
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
    # --------------------------------------------------------------------- ours
    own("fitted reuse, multistep plan", {"fitted": {"profile": FITTED}}),
    own("fitted reuse, exact, multistep plan", {"fitted": {"profile": EXACT}}),
    own("fitted reuse, ERTACache steps", {"fitted": {"profile": FITTED_WALK}}),
    # what `erta.enable(pipe)` takes where no constants ship
    own("no profile: even steps + line", EVEN, TAYLOR),
    own("no profile: steps counted from the end + line", FROM_THE_END, TAYLOR),
    own("multistep plan + line", MULTISTEP, LINE),
    own("multistep plan + parabola", MULTISTEP, PARABOLA),
    own("planned steps, reuse", PLANNED),
    own("planned steps for a line", FORESEEN, LINE),
    # -------------------------------------------------------------- combinations
    mix("uniform reuse", EVENLY),
    mix("uniform, corrected", EVENLY, CORRECTED),
    mix("uniform + line", EVENLY, LINE),
    mix("ERTACache steps, reuse", SCHEDULE),
    mix("ERTACache steps + line", SCHEDULE, LINE),
    mix("ERTACache steps + line, corrected", SCHEDULE, LINE, CORRECTED),
    mix("ERTACache steps + parabola", SCHEDULE, PARABOLA),
    mix(
        "ERTACache steps + TaylorSeer's line",
        SCHEDULE,
        TAYLOR,
    ),
    mix("ERTACache steps + mean velocity", SCHEDULE, "mean_velocity"),
    mix("MagCache, latents", MAGNITUDE, search=THRESHOLD),
    mix("MagCache, latents, corrected", MAGNITUDE, CORRECTED, search=THRESHOLD),
    mix("MagCache, latents + line", MAGNITUDE, LINE, search=THRESHOLD),
    mix("MagCache, latents + parabola", MAGNITUDE, PARABOLA, search=THRESHOLD),
    mix("BudCache search + line", {"budcache": {"profile": SEARCHED_FOR_LINE}}, LINE),
    mix("LeMiCa's steps + line", {"skip_policy": {"steps": LEMICA}}, LINE),
    mix("MeanCache steps + line", PATH, LINE),
    mix("MeanCache steps + parabola", PATH, PARABOLA),
    mix("EasyCache, corrected", EASY, CORRECTED, search=THRESHOLD),
    mix("EasyCache + line", EASY, LINE, search=THRESHOLD),
    mix(
        "first-block rule + line",
        {"first_block_rule": {"threshold": SOLVED, "per_sample": False}},
        {"forecaster": {"basis": "newton", "order": 1, "what": "residual"}},
        search=THRESHOLD,
        seam="trunk",
    ),
    mix(
        "CFG-Cache, no bands + DeepCache",
        HALF_GUIDANCE,
        {"deepcache": {"interval": SOLVED}},
        search=INTERVAL,
    ),
    # -------------------------------------------------------------- other caches
    other("diffusers FirstBlockCache", "FirstBlockCache", threshold=SOLVED),
    other("diffusers MagCache", "MagCache", mag_ratios=RATIOS, threshold=SOLVED, max_skip_steps=6),
    other("diffusers SeaCache", "SeaCache", threshold=SOLVED),
    other(
        "diffusers TaylorSeer lite",
        "TaylorSeer",
        INTERVAL,
        cache_interval=SOLVED,
        use_lite_mode=True,
        taylor_factors_dtype=torch.float32,
    ),
    other(
        "diffusers TaylorSeer",
        "TaylorSeer",
        INTERVAL,
        cache_interval=SOLVED,
        cache_identifiers=PARTS,
        taylor_factors_dtype=torch.float32,
    ),
    other(
        "diffusers PyramidAttentionBroadcast",
        "PyramidAttentionBroadcast",
        INTERVAL,
        spatial_attention_block_skip_range=SOLVED,
        cross_attention_block_skip_range=SOLVED,
        spatial_attention_timestep_skip_range=ALL_TIMES,
        cross_attention_timestep_skip_range=ALL_TIMES,
    ),
    other(
        "diffusers FasterCache",
        "FasterCache",
        INTERVAL,
        spatial_attention_block_skip_range=SOLVED,
    ),
    other(
        "cache-dit DBCache F1B0",
        "cache-dit",
        Fn_compute_blocks=1,
        Bn_compute_blocks=0,
        residual_diff_threshold=SOLVED,
    ),
    other(
        "cache-dit DBCache F1B0, TaylorSeer",
        "cache-dit",
        Fn_compute_blocks=1,
        Bn_compute_blocks=0,
        residual_diff_threshold=SOLVED,
        calibrator_config="TaylorSeerCalibratorConfig",
    ),
    other(
        "cache-dit DBCache F1B0, FoCa",
        "cache-dit",
        Fn_compute_blocks=1,
        Bn_compute_blocks=0,
        residual_diff_threshold=SOLVED,
        calibrator_config="FoCaCalibratorConfig",
    ),
    other(
        "cache-dit DBCache F1B0, DMD",
        "cache-dit",
        Fn_compute_blocks=1,
        Bn_compute_blocks=0,
        residual_diff_threshold=SOLVED,
        calibrator_config="DMDCalibratorConfig",
    ),
)

LEARNED: tuple[Contender, ...] = (
    learned("learned solver (times and weights), exact", "exact"),
    learned("learned solver (times and weights), full run", "full"),
)
"""Solvers that are trained by gradient for each number of calls; only `erta bench peers` has these,
since training takes minutes."""

UNLISTED: Mapping[str, str] = {
    "module_table": "the table of febcache, which has rows",
    "channel_correction": "the correction of cachequant, which has rows",
    "grouped_steps": "the schedule of cachequant, which has rows",
    "centered_steps": "another schedule of deepcache, which has rows",
    "constant": "stands branches in that are known for one model, and has nothing to solve for",
    "band_correction": "the part of freqca inside the network, which has a row",
    "growing_window": "the schedule of spectrum, which has rows",
    "drift_gate": "the gate of fastcache, which has rows",
    "token_split": "the tokens of fastcache, which has rows, and nothing reused in whole blocks",
    "clusca": "the recipe of cluster_refresh, which has a row, for intervals of whole steps",
    "fitted_schedule": "the schedule of fitted, which has a row",
    "prompt_threshold": "an adapter of another rule; reference prompts of this model mean nothing",
    "prompttea_rule": "the rule of prompttea, which has a row",
    "seacache_rule": "the rule of seacache, which has rows",
    "every_branch_agrees": "an adapter of another rule, which changes nothing where one decides",
    "probe_rule": "the rule of dicache, which has a row",
    "teacache_rule": "the rule of teacache, which has rows",
    **dict.fromkeys(
        (
            "d2cache",
            "dkvcache",
            "dkvcache_greedy",
            "dkvcache_pd",
            "dkvcache_prefill",
            "dllmcache",
            "fastdllm_dual",
            "fastdllm_prefix",
        ),
        "for masked language models, which `erta bench masked` compares",
    ),
    "teacache_schedule": "the same steps as teacache on the timestep's embedding, known beforehand",
}
"""Installed skip rules and recipes without a row, and why."""
