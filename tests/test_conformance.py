"""Every first-party policy keeps the whole contract."""

from __future__ import annotations

from functools import partial

import pytest

from erta_framework import CFG, Engine, FlowEuler, Policy
from erta_framework.errors import PolicyError
from erta_framework.modules import Select
from erta_framework.plugins import flatten, policies
from erta_framework.testing import BlockFlow, ToySetup, check_policy, toy_profile

OURS = {name: policies(only=()).load(name) for name in policies(only=()).names()}

ResidualProfiler = OURS["residual_profiler"]
ReplayProfiler = OURS["replay_profiler"]
SkipPolicy = OURS["skip_policy"]
PlannedSchedule = OURS["planned_schedule"]
MultistepSchedule = OURS["multistep_schedule"]
TimestepAdjuster = OURS["timestep_adjuster"]
ErrorLinearizer = OURS["error_linearizer"]
ERTACache = OURS["ertacache"]
EasyCache = OURS["easycache"]
Forecaster = OURS["forecaster"]
MeanCache = OURS["meancache"]
MeanCacheProfiler = OURS["meancache_profiler"]
MeanCacheSchedule = OURS["meancache_schedule"]
AverageVelocity = OURS["average_velocity"]
TaylorSeer = OURS["taylorseer"]
HiCache = OURS["hicache"]
MagCache = OURS["magcache"]
MagCacheProfiler = OURS["magcache_profiler"]
TeaCache = OURS["teacache"]
TeaCacheProfiler = OURS["teacache_profiler"]
TeaCacheSchedule = OURS["teacache_schedule"]
SenCache = OURS["sencache"]
SensitivityProfiler = OURS["sensitivity_profiler"]
SurrogateProfiler = OURS["surrogate_profiler"]
PromptTea = OURS["prompttea"]
PromptTeaRule = OURS["prompttea_rule"]
PromptThreshold = OURS["prompt_threshold"]
BranchSubstitute = OURS["branch_substitute"]
RegressionProfiler = OURS["regression_profiler"]
CodebookProfiler = OURS["codebook_profiler"]
PromptProfiler = OURS["prompt_profiler"]
FittedProfiler = OURS["fitted_profiler"]
SmoothCacheProfiler = OURS["smoothcache_profiler"]
PARTS = Select(kind=("attention", "mlp"))
RESIDUALS = OURS["at"](
    sites=Select(kind=("block",)), when=OURS["refresh_interval"](interval=3), of="residual"
)
FORECASTS = TaylorSeer(interval=3, level="modules", sites=PARTS)
STATES = toy_profile(OURS["febcache_profiler"](budget={"work": 6.0}, rounds=3))
EASY = EasyCache(threshold=0.5, warmup=2)

PROFILE = toy_profile(ResidualProfiler())
REPLAYED = toy_profile(ReplayProfiler(threshold=0.3))
MEAN = toy_profile(MeanCacheProfiler())
EDGES = MeanCacheSchedule(profile=MEAN, calls=5)
MAGNITUDES = toy_profile(MagCacheProfiler())
CHANGES = toy_profile(TeaCacheProfiler(signal="latents"))
SENSITIVITIES = toy_profile(SensitivityProfiler())
FITTED = toy_profile(FittedProfiler())
BLOCK_SUMS = toy_profile(SurrogateProfiler())
SMOOTH = toy_profile(SmoothCacheProfiler())
GAPS = toy_profile(OURS["cem_profiler"]())
UNSEARCHED = OURS["budcache_profiler"](budget={"calls": 5}, iterations=0, climbs=0)
SPAN = Select(kind=("block",), depth="1:", span=True)
FEATURES = toy_profile(OURS["feature_profiler"](sites=SPAN, interval=4))
# it was made on the toy with blocks
OTHER_TOY = tuple(k for k in FEATURES.fingerprint if k not in ("of", "rows", "num_steps"))
BLOCKS = ToySetup(
    toy=partial(BlockFlow, depth=4), solver=FlowEuler(), guidance=CFG(scale=2.0), num_steps=10
)
PLANS = toy_profile(OURS["procache_profiler"](full=(4, 3)), setup=BLOCKS)
LINE = (1.0, 0.0)
PLANE = (0.0, 1.0, 0.001, *(0.0,) * 9)
REGRESSION = toy_profile(RegressionProfiler(signal="latents"))
CODEBOOK = toy_profile(CodebookProfiler())
WORDS = PromptProfiler(
    simple=tuple(f"sample {100 * seed + 2 * k}" for seed in range(60) for k in range(2)),
    complex=tuple(f"sample {100 * seed + 2 * k + 1}" for seed in range(60) for k in range(2)),
)
REFERENCES = toy_profile(WORDS)
PROMPTED = {"references": REFERENCES, "low": 0.1, "high": 0.8, "sharpness": 20.0}

# they decide by a mean over the batch, so that a sample is not what it is alone
H2 = OURS["h2cache"](tau1=0.3, tau2=0.3, split=2)
GATE = OURS["first_block_gate"](threshold=0.5)
FLASH = OURS["precisecache"](
    variant="flash", skip_ratio=0.5, length=2, steps=OURS["lfcache"](alpha=0.7, per_sample=False)
)
SPECA = OURS["speca"]()
GROUPS = OURS["drift_gate"](threshold=0.3, per_sample=False, group=2)
SPLIT = OURS["token_split"](motion=0.3, full=1.0)
FAST_TOKENS = OURS["fastcache"](threshold=0.2, per_sample=False, motion=0.2)
STACK = OURS["spectrum"](level="blocks", first=2)
SHRUNK = {"check_reuse_at_equal_input_is_equal": "the ridge pulls a constant towards 0"}
RESTING = OURS["l2c_profiler"]()
CLUSTERS = OURS["clusca"](sites=PARTS, interval=3, clusters=4, ratio=0.4)
MIXED = {"check_reuse_at_equal_input_is_equal": "a token is mixed with another of its cluster"}
WHOLE = {"check_rows_of_modules": "one decision for the whole batch"}
TRYING = OURS["febcache_profiler"](budget={"work": 6.0}, metric="l2")
NO_GATES = {
    name: "it tries other plans, and this check offers no trials through gates"
    for name in ("check_reuse_at_equal_input_is_equal", "check_branches_are_isolated")
}


FITTED_TO_CHANGES = {
    "check_reuse_at_equal_input_is_equal": "a fitted line predicts the usual change, also of none"
}


GROUPED_BY_WORK = OURS["cachequant"](
    profile=FEATURES, sites=SPAN, budget={"work": 7.0}, correction=False
)
PLANS_ONCE = {
    "check_static_reads_nothing_back": "it plans on the host, once it knows what its places cost"
}


def is_line(policy):
    """Whether it changes what it reuses by lines that were fitted to a full run."""
    if isinstance(policy, OURS["cachequant"]):
        return policy.correction
    return isinstance(policy, OURS["fastcache"]) and policy.surrogate == "affine"


def list_expected_failures(policy):
    """The checks that a policy cannot keep, with the reason."""
    if policy is TRYING:
        return NO_GATES
    if policy is GROUPED_BY_WORK:
        return PLANS_ONCE
    if is_line(policy):
        return FITTED_TO_CHANGES
    if policy in (STACK, CLUSTERS):
        return SHRUNK if policy is STACK else MIXED
    if policy is RESTING:
        return {name: NO_GATES[name] for name in NO_GATES if "equal" in name}
    return WHOLE if policy in (H2, GATE, FLASH, SPLIT, FAST_TOKENS) else {}


POLICIES: list[Policy] = [
    ResidualProfiler(),
    ReplayProfiler(threshold=0.0),
    ReplayProfiler(threshold=0.3),
    OURS["residual_reuse"](),
    SkipPolicy(evenly=4),
    SkipPolicy(every=3),
    SkipPolicy(steps=(0, 1, 5)),
    SkipPolicy(profile=PROFILE, calls=5),
    SkipPolicy(profile=PROFILE, threshold=0.2, signal="mean", warmup=2),
    SkipPolicy(profile=REPLAYED),
    TimestepAdjuster(phi=(0.7,) * 10, network_time="actual"),
    TimestepAdjuster(profile=PROFILE),
    TimestepAdjuster(profile=PROFILE, form="difference", signal="max"),
    ErrorLinearizer(profile=PROFILE),
    ErrorLinearizer(profile=PROFILE, granularity="channel"),
    ErrorLinearizer(profile=PROFILE, form="sigmoid"),
    SkipPolicy(profile=PROFILE, budget={"speedup": 2.0}),
    PlannedSchedule(profile=PROFILE, budget={"calls": 5}),
    MultistepSchedule(profile=PROFILE, budget={"calls": 5}),
    PlannedSchedule(profile=PROFILE, budget={"speedup": 2.5}, cost="forecast", monotone=True),
    ERTACache(profile=PROFILE, calls=5),
    ERTACache(profile=PROFILE, skip=PlannedSchedule(budget={"calls": 4}, cost="integrated")),
    ERTACache(profile=PROFILE, threshold=0.2, adjuster=True),
    ERTACache(profile=PROFILE, calls=4, linearizer=False, predictor=False),
    ERTACache(
        profile=PROFILE,
        skip=SkipPolicy(every=2),
        adjuster=TimestepAdjuster(form="difference", network_time="actual"),
        linearizer=ErrorLinearizer(granularity="channel"),
    ),
    EASY,
    EasyCache(threshold=0.5, warmup=2, per_sample=False),
    Forecaster(),
    Forecaster(basis="taylor", order=2, over="index", what="residual"),
    Forecaster(basis="hermite", order=2, over="index"),
    Forecaster(basis="adams", order=2),
    Forecaster(order=1, what="x0"),
    OURS["mean_velocity"](),
    MeanCacheProfiler(),
    MeanCacheProfiler(longest=3, spans=2),
    EDGES,
    MeanCacheSchedule(fresh=(0, 1, 2, 5, 9)),
    AverageVelocity(span=3),
    AverageVelocity(schedule=EDGES),
    OURS["edge_velocity"](schedule=EDGES),
    MeanCache(profile=MEAN, calls=5),
    MeanCache(profile=MEAN, calls=6, gamma=1.0, variant="B"),
    MeanCache(profile=MEAN, calls=4, variant="C"),
    MeanCache(fresh=(0, 1, 2, 3, 6, 9), spans=(0, 0, 0, 2, 2)),
    OURS["refresh_interval"](interval=2, first=1, counting="fora"),
    OURS["at"](sites=PARTS, when=OURS["refresh_interval"](interval=2, first=1)),
    OURS["at"](sites=PARTS, when=OURS["refresh_interval"](interval=3), what=Forecaster(order=1)),
    OURS["at"](
        sites=Select(kind=("block",), span=True),
        when=SkipPolicy(every=3),
        of="residual",
        what=Forecaster(basis="taylor", over="index", what="residual"),
        max_age=4,
    ),
    OURS["centered_steps"](interval=3, center=4),
    OURS["noise_scale"](),
    OURS["module_table"](table="NNBAMNNBBA"),
    OURS["module_table"](profile=STATES, window=2),
    OURS["febcache"](table="NBBNMNANBB"),
    OURS["febcache"](profile=STATES, noise=None),
    TRYING,
    OURS["noise_scale"](scale=1.01),
    OURS["noise_scale"](scale=tuple(1 - 0.01 * k for k in range(10))),
    OURS["feature_profiler"](sites=PARTS, interval=2),
    OURS["grouped_steps"](profile=FEATURES, interval=3, allow=OTHER_TOY),
    OURS["grouped_steps"](profile=FEATURES, budget={"calls": 4}, allow=OTHER_TOY),
    OURS["cachequant"](profile=FEATURES, interval=3, sites=SPAN),
    OURS["cachequant"](profile=FEATURES, sites=SPAN, grouping="even", each_branch=True, shrink=9.0),
    GROUPED_BY_WORK,
    OURS["cfg_cache"](),
    OURS["cfg_cache"](period=3, start=0.2, bands=False),
    OURS["attention_extrapolation"](),
    OURS["attention_extrapolation"](interval=3, most=1.0, sites=PARTS),
    OURS["fastercache"](),
    OURS["fastercache"](period=3, interval=3, start=0.2),
    H2,
    OURS["h2cache"](tau1=9.0, tau2=9.0, split=2, warmup=2, max_consecutive=2, each_branch=True),
    GATE,
    OURS["first_block_gate"](threshold=9.0, pool=2, each_branch=False),
    OURS["first_block_gate"](threshold=9.0, tail=1, max_consecutive=3),
    TaylorSeer(interval=3, order=2),
    TaylorSeer(interval=3, basis="adams", over="sigma", schedule="diffusers"),
    TaylorSeer(interval=4, first=1, basis="newton", schedule="cache-dit"),
    HiCache(interval=3),
    OURS["fora"](interval=3),
    OURS["fora"](interval=2, counting="up"),
    OURS["fora"](budget={"speedup": 2.0}),
    OURS["fora"](interval=3, level="modules"),
    HiCache(interval=4, first=2, level="modules"),
    TaylorSeer(interval=3, order=2, first=1, level="modules", sites=PARTS),
    OURS["adacorrection"](policy=OURS["fora"](interval=3, level="modules")),
    OURS["adacorrection"](policy=RESIDUALS, gamma=0.5, low=0.0, high=1.0),
    OURS["adacorrection"](policy=OURS["pab"](spatial=3, window=(-1.0, 2000.0)), reference=0.3),
    OURS["adacorrection"](policy=FORECASTS, mode="paper"),
    SPECA,
    RESTING,
    OURS["l2c"](profile=toy_profile(RESTING), budget={"work": 8.5}),
    OURS["speca"](least=2, most=3, first=1, order=1, threshold=0.0, floor=0.0),
    OURS["constant"](modules="head"),
    OURS["constant"](modules="blocks[.][01][.].*[.](qkv|up|down)", compare="values"),
    SmoothCacheProfiler(),
    SmoothCacheProfiler(lookback=1, sites=PARTS),
    OURS["smoothcache"](profile=SMOOTH, threshold=0.2),
    OURS["smoothcache"](profile=SMOOTH, budget={"work": 7}),
    OURS["smoothcache"](schedule={"attn": (1, 0, 0, 1, 1, 0, 1, 1, 1, 0), "mlp": (1, 0) * 5}),
    OURS["cem_profiler"](),
    OURS["cem_profiler"](longest=3),
    OURS["cem"](profile=GAPS, calls=5),
    OURS["cem"](profile=GAPS, budget={"speedup": 2.0}, weight="none"),
    UNSEARCHED,
    OURS["budcache"](profile=toy_profile(UNSEARCHED), calls=5),
    OURS["spectrum"](first=2, growth=1.0),
    STACK,
    OURS["spectrum"](level="blocks", first=2, free_mean=True, blend=1.0),
    OURS["growing_window"](budget={"calls": 6}),
    OURS["chebyshev_forecast"](),
    OURS["chebyshev_forecast"](over="index", what="x0", free_mean=True),
    OURS["freqca"](interval=3, first=2),
    OURS["freqca"](interval=3, transform="dct", order=1, cutoff=0.3),
    OURS["freqca"](level="blocks", interval=3, first=2),
    OURS["band_forecast"](),
    CLUSTERS,
    OURS["clusca"](sites=PARTS, interval=2, ratio=0.0),
    OURS["cluster_refresh"](
        of=OURS["at"](sites=PARTS, when=OURS["refresh_interval"](interval=3)), ratio=0.0
    ),
    OURS["pab"](spatial=3, window=(-1.0, 2000.0)),
    OURS["pab"](spatial=2, mlp_times=(923, 667), mlp_depth=":"),
    OURS["procache_profiler"](full=(4,)),
    OURS["procache"](plan="FcScFSSFcS", depth=0.0),
    OURS["procache"](profile=PLANS, budget={"calls": 3}),
    OURS["procache"](budget={"work": 5.0}, select=False),
    MagCacheProfiler(),
    MagCache(profile=MAGNITUDES, threshold=0.5, max_skips=3),
    MagCache(profile=MAGNITUDES, shared=True, max_skips=1),
    MagCache(profile=MAGNITUDES, budget={"calls": 6}, max_skips=4),
    MagCache(model="flux.1-dev", any_seam=True),
    MagCache(model="qwen-image", any_seam=True, resample="consistent", retention=0.3),
    SensitivityProfiler(),
    SenCache(profile=SENSITIVITIES, eps_start=0.1, eps_main=0.3),
    SenCache(profile=SENSITIVITIES, model="wan2.1-t2v-1.3b", per_sample=False, first=1, last=1),
    SenCache(profile=SENSITIVITIES, eps_start=0.2, eps_main=0.2, each_branch=True, start=0.5),
    TeaCacheProfiler(signal="latents"),
    TeaCacheProfiler(signal="latents", target="residual", per_sample=False),
    TeaCache(profile=CHANGES, threshold=0.1),
    TeaCache(coefficients=LINE, threshold=0.2, signal="latents", first=2, per_sample=False),
    TeaCache(coefficients=LINE, threshold=0.2, signal="latents", each_branch=False, last=0),
    OURS["teacache_rule"](coefficients=LINE, threshold=0.3, signal="latents", absolute=True),
    TeaCacheSchedule(profile=CHANGES, threshold=0.3),
    TeaCacheSchedule(profile=CHANGES, budget={"calls": 5}),
    TeaCacheSchedule(profile=CHANGES, coefficients=LINE, threshold=0.3, clamp_nonnegative=True),
    WORDS,
    RegressionProfiler(signal="latents"),
    CodebookProfiler(),
    PromptTeaRule(coefficients=PLANE, threshold=0.3, signal="latents"),
    PromptTeaRule(profile=REGRESSION, threshold=0.2, per_sample=True),
    PromptTea(profile=REGRESSION, threshold=0.2, codebook=CODEBOOK, codebook_threshold=0.4),
    PromptTea(profile=REGRESSION, references=REFERENCES, low=0.1, high=0.8, last=1),
    PromptThreshold(policy=EASY, **PROMPTED),
    PromptThreshold(policy=EASY, each_sample=True, **PROMPTED),
    BranchSubstitute(codebook=(0.2,) * 10, threshold=0.5),
    BranchSubstitute(codebook=(0.2,) * 4, threshold=0.5, counting="script"),
    BranchSubstitute(profile=CODEBOOK, threshold=0.5),
    OURS["lfcache"](alpha=0.7),
    OURS["lfcache"](alpha=0.7, reference="last_full", down="nearest", per_sample=False),
    OURS["precisecache"](variant="base"),
    FLASH,
    SurrogateProfiler(),
    SurrogateProfiler(buckets=3, longest=1),
    OURS["drift_gate"](),
    OURS["drift_gate"](threshold=9.0, most=2, accumulate=True),
    OURS["drift_gate"](threshold=0.4, surrogate="ridge", profile=BLOCK_SUMS, rank=2),
    OURS["drift_gate"](test="calibrated", quantile=0.5, profile=BLOCK_SUMS),
    OURS["drift_gate"](test="adaptive", floor=0.1, spread="variance"),
    GROUPS,
    SPLIT,
    OURS["fastcache"](threshold=0.3),
    OURS["fastcache"](threshold=0.3, surrogate="affine", profile=BLOCK_SUMS),
    FAST_TOKENS,
    OURS["blockcache"](),
    OURS["blockcache"](skip_ratio=0.75, length=1, blocks=Select(kind=("block",), depth="1:")),
    OURS["seacache"](threshold=0.5, max_consecutive=3),
    OURS["seacache"](threshold=0.3, order=0, max_consecutive=None, per_sample=False),
    OURS["seacache_rule"](threshold=0.4, power=2.0),
    OURS["warm_up"](steps=3),
    OURS["last_step"](),
    OURS["max_consecutive"](steps=1),
    OURS["only_between"](high=0.8, low=0.2),
    OURS["budget"](calls=4),
    OURS["every_branch_agrees"](policy=EASY),
    OURS["fitted_schedule"](profile=FITTED),
    OURS["fitted_velocity"](profile=FITTED),
    OURS["fitted_velocity"](profile=FITTED, guard=True),
    OURS["fitted"](profile=FITTED),
    OURS["dkvcache"](refresh=3),
    OURS["dkvcache"](delay=0, refresh=None),
    OURS["dkvcache"](delay=2, refresh=None, restart="request"),
    OURS["dkvcache_greedy"](),
    OURS["dkvcache_greedy"](window=0, centre="previous", refresh=None),
    OURS["dkvcache_prefill"](),
    OURS["dkvcache_pd"](),
    OURS["fastdllm_prefix"](),
    OURS["fastdllm_dual"](),
    OURS["dllmcache"](response_interval=3),
    OURS["d2cache"](masked=2),
]


def name_policy(policy):
    """Its number in the list, and its class."""
    return f"{POLICIES.index(policy)}-{type(policy).__name__}"


# one test a policy: thousands of tests, one a check, took as long to start as to run
@pytest.mark.parametrize("policy", POLICIES, ids=name_policy)
def test_first_party_policy(policy):
    check_policy(policy, expected_failed_checks=list_expected_failures(policy))


# they look at a probe, which the kit's toy has not; tests/policies/probes runs them on pipelines
PROBES = [
    OURS["fbcache"](),
    OURS["first_block_rule"](),
    OURS["probe_reuse"](),
    OURS["dicache"](threshold=0.1),
    OURS["probe_rule"](),
    OURS["two_anchors"](),
]


# it cuts UNets, which the kit's toy is not; tests/integrations/diffusers/test_deepcache.py runs it
CUTS = [OURS["deepcache"]()]


# it wants each sample several times in a batch, which the kit's requests have once;
# tests/policies/fitted runs it
COPIES = [FittedProfiler(), OURS["end_to_end_profiler"]()]


# it says what `at` does to what it reuses, and is refused on its own
HELD = [OURS["channel_correction"](profile=FEATURES), OURS["band_correction"]()]


def test_what_only_another_policy_holds_is_refused_on_its_own():
    for policy in HELD:
        with pytest.raises(PolicyError, match="implements no hook"):
            Engine([policy])


def test_every_registered_policy_is_covered():
    tested = {type(policy) for policy in (*POLICIES, *PROBES, *CUTS, *COPIES, *HELD)}
    missing = [name for name, cls in OURS.items() if cls not in tested]
    assert missing == []


def test_what_the_kit_cannot_run_really_needs_a_probe():
    for policy in PROBES:
        required = frozenset().union(*(part.traits.requires for part in flatten([policy])))
        assert required == {"signal:probe:1"}


def test_the_recipes_are_tested_with_every_part_on_and_off():
    parts = [{type(part) for part in flatten([p])} for p in POLICIES if isinstance(p, ERTACache)]
    optional = (TimestepAdjuster, ErrorLinearizer)
    for part in optional:
        assert {part in found for found in parts} == {True, False}
