"""What the packages of several papers share: rules, profiles, budgets, signals and paths."""

from erta_framework.metrics import mean_magnitude, relative_l1
from erta_policies.shared._budgets import (
    BudgetedPlanner,
    BudgetedRecipe,
    BudgetLike,
    PlanBudget,
    list_thresholds,
    solve_setting,
)
from erta_policies.shared._change_profiler import (
    DEGREE,
    ChangeProfiler,
    make_change_kind,
    read_calibrated_range,
)
from erta_policies.shared._change_rules import ChangeRule, FittedChangeRule, resolve_threshold
from erta_policies.shared._decisions import Accumulator, FirstBranch, reuse_below
from erta_policies.shared._fixed_schedule import FixedSchedule
from erta_policies.shared._newest_steps import find_newest, plan_newest, require_schedule
from erta_policies.shared._paths import find_cheapest_paths, forbid_growing_gaps, to_band
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
    grid_dims,
    probe_capability,
    read_mixing,
    read_probe,
)
from erta_policies.shared._span_gates import SpanGate, SpanGates, pool_squares
from erta_policies.shared._token_rules import (
    TOKENS,
    Restart,
    TokenRule,
    check_at_least,
    find_full,
)

__all__ = [
    "DEGREE",
    "TOKENS",
    "Accumulator",
    "BudgetLike",
    "BudgetedPlanner",
    "BudgetedRecipe",
    "ChangeProfiler",
    "ChangeRule",
    "FirstBranch",
    "FittedChangeRule",
    "FixedSchedule",
    "Mixing",
    "PlanBudget",
    "ProfileSource",
    "Restart",
    "RuleWrapper",
    "RunProfiler",
    "Signal",
    "SpanGate",
    "SpanGates",
    "TokenRule",
    "call_hook",
    "check_at_least",
    "check_probe_depth",
    "find_cheapest_paths",
    "find_full",
    "find_newest",
    "forbid_growing_gaps",
    "grid_dims",
    "list_thresholds",
    "load_profile",
    "make_change_kind",
    "mean_magnitude",
    "order_branches",
    "plan_newest",
    "pool_squares",
    "probe_capability",
    "read_branches",
    "read_calibrated_range",
    "read_mixing",
    "read_probe",
    "read_reference",
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
    "to_band",
]
