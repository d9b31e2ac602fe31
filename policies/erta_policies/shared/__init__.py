"""What the packages of several papers share: rules, plans, profiles, budgets, signals, tokens."""

from erta_framework.metrics import mean_magnitude, relative_l1
from erta_policies.shared._budgets import (
    QUALITIES,
    BudgetedPlanner,
    BudgetedRecipe,
    BudgetLike,
    PlanBudget,
    list_thresholds,
    read_quality,
    solve_setting,
)
from erta_policies.shared._change_profiler import (
    DEGREE,
    ChangeProfiler,
    make_change_kind,
    read_calibrated_range,
)
from erta_policies.shared._change_rules import ChangeRule, FittedChangeRule, resolve_threshold
from erta_policies.shared._channel_affine import (
    ChannelAffine,
    LineFit,
    PairMoments,
    apply_line,
    find_channels,
    fit_line,
    spread_channels,
)
from erta_policies.shared._decisions import Accumulator, FirstBranch, reuse_below
from erta_policies.shared._drift import (
    blend,
    measure_drift,
    measure_norms,
    measure_spread,
    measure_spread_drift,
)
from erta_policies.shared._fixed_schedule import FixedSchedule
from erta_policies.shared._module_profiler import ROWS, SAMPLES, ModuleProfiler, Seen, read_rows
from erta_policies.shared._newest_steps import find_newest, plan_newest, require_schedule
from erta_policies.shared._paths import find_cheapest_paths, forbid_growing_gaps, to_band
from erta_policies.shared._plan_family import PlanFamily
from erta_policies.shared._plans import FULL, REUSE, SELECT, StepPlan
from erta_policies.shared._profiles import (
    ProfileSource,
    RunProfiler,
    load_profile,
    order_branches,
    read_branches,
    read_reference,
    refuse_unsolvable,
    require_computed,
    require_finite_fit,
    require_match,
    require_one_option,
    require_whole_run,
)
from erta_policies.shared._rule_wrapper import RuleWrapper, call_hook
from erta_policies.shared._signal_memory import Signal
from erta_policies.shared._signals import (
    Mixing,
    check_probe_depth,
    check_probe_rule,
    grid_dims,
    make_probe_traits,
    probe_capability,
    read_mixing,
    read_probe,
)
from erta_policies.shared._span_gates import SpanGate, SpanGates, pool_squares
from erta_policies.shared._surrogate_fit import (
    ChangeMoments,
    LinearFit,
    check_ridge,
    fit_ridge,
)
from erta_policies.shared._surrogate_profile import SurrogateProfiler, find_bucket
from erta_policies.shared._surrogate_table import SurrogateTable
from erta_policies.shared._surrogates import (
    SURROGATES,
    AffineResidual,
    ResidualReuse,
    RidgeResidual,
    Surrogate,
    SurrogateName,
    make_affine,
)
from erta_policies.shared._token_rules import (
    TOKENS,
    Restart,
    TokenRule,
    check_at_least,
    find_full,
)
from erta_policies.shared._token_score import TokenScore, refresh_tokens

__all__ = [
    "DEGREE",
    "FULL",
    "QUALITIES",
    "REUSE",
    "ROWS",
    "SAMPLES",
    "SELECT",
    "SURROGATES",
    "TOKENS",
    "Accumulator",
    "AffineResidual",
    "BudgetLike",
    "BudgetedPlanner",
    "BudgetedRecipe",
    "ChangeMoments",
    "ChangeProfiler",
    "ChangeRule",
    "ChannelAffine",
    "FirstBranch",
    "FittedChangeRule",
    "FixedSchedule",
    "LineFit",
    "LinearFit",
    "Mixing",
    "ModuleProfiler",
    "PairMoments",
    "PlanBudget",
    "PlanFamily",
    "ProfileSource",
    "ResidualReuse",
    "Restart",
    "RidgeResidual",
    "RuleWrapper",
    "RunProfiler",
    "Seen",
    "Signal",
    "SpanGate",
    "SpanGates",
    "StepPlan",
    "Surrogate",
    "SurrogateName",
    "SurrogateProfiler",
    "SurrogateTable",
    "TokenRule",
    "TokenScore",
    "apply_line",
    "blend",
    "call_hook",
    "check_at_least",
    "check_probe_depth",
    "check_probe_rule",
    "check_ridge",
    "find_bucket",
    "find_channels",
    "find_cheapest_paths",
    "find_full",
    "find_newest",
    "fit_line",
    "fit_ridge",
    "forbid_growing_gaps",
    "grid_dims",
    "list_thresholds",
    "load_profile",
    "make_affine",
    "make_change_kind",
    "make_probe_traits",
    "mean_magnitude",
    "measure_drift",
    "measure_norms",
    "measure_spread",
    "measure_spread_drift",
    "order_branches",
    "plan_newest",
    "pool_squares",
    "probe_capability",
    "read_branches",
    "read_calibrated_range",
    "read_mixing",
    "read_probe",
    "read_quality",
    "read_reference",
    "read_rows",
    "refresh_tokens",
    "refuse_unsolvable",
    "relative_l1",
    "require_computed",
    "require_finite_fit",
    "require_match",
    "require_one_option",
    "require_schedule",
    "require_whole_run",
    "resolve_threshold",
    "reuse_below",
    "solve_setting",
    "spread_channels",
    "to_band",
]
