"""The rows: one line adds one. `UNLISTED` says why an installed policy has none.

Those of policies that work inside the network, and those of other projects' caches, have files of
their own; the order is that of tables.

A rule that looks at the block stack decides over the whole batch here (`per_sample=False`), as
published: the stack cannot be split, so one sample would make all compute.
"""

from __future__ import annotations

from erta_bench.comparison._contender import (
    BUDGET,
    INTERVAL,
    PART,
    SOLVED,
    THRESHOLD,
    TOLERANCE,
    Contender,
    ListedSteps,
    Spec,
    calibrate_with,
    learned,
    mix,
    own,
    plain,
    policy,
)
from erta_bench.comparison._inside_rows import HALF_GUIDANCE, INSIDE
from erta_bench.comparison._rival_rows import RIVALS
from erta_bench.comparison._unlisted import UNLISTED

__all__ = ["CONTENDERS", "EXACT", "LEARNED", "MULTISTEP", "SCHEDULE", "UNLISTED"]

RESIDUAL = calibrate_with("residual_profiler")
MAG = calibrate_with("magcache_profiler")
MAG_HALF = calibrate_with("magcache_profiler", steps=25)
MEAN = calibrate_with("meancache_profiler")
TEA = calibrate_with("teacache_profiler", signal="timestep_embedding")
TEA_INPUT = calibrate_with("teacache_profiler", signal="modulated_input")
TEA_PROMPT = calibrate_with("regression_profiler")
CODEBOOK = calibrate_with("codebook_profiler")
# at the latent seam, which serves the trunk as well
SENSITIVITY = calibrate_with("sensitivity_profiler", seam="latent")

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
    *INSIDE,
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
    *RIVALS,
)

LEARNED: tuple[Contender, ...] = (
    learned("learned solver (times and weights), exact", "exact"),
    learned("learned solver (times and weights), full run", "full"),
)
"""Solvers that are trained by gradient for each number of calls; only `erta bench peers` has these,
since training takes minutes."""
