"""Policies, their hooks and traits, the engine that calls them, and the catalogues."""

from erta_framework.plugins._automatic import (
    Choice,
    Chooser,
    NetworkFacts,
    PipelineFacts,
    load_chooser,
)
from erta_framework.plugins._budgets import (
    BUDGETS,
    give_budget,
    refuse_budget,
    take_budget,
    with_budget,
)
from erta_framework.plugins._engine import Engine
from erta_framework.plugins._explain import describe_policy
from erta_framework.plugins._hooks import find_hooks, read_hook_options
from erta_framework.plugins._hookspecs import HOOKS, PROJECT, HookSpecs, hookimpl
from erta_framework.plugins._policy import Policy, Profiler, find_owners, flatten
from erta_framework.plugins._registry import (
    Catalogue,
    Entry,
    benches,
    commands,
    drivers,
    find_default_policy,
    launchers,
    list_budgeted,
    load_with_extra,
    models,
    policies,
)
from erta_framework.plugins._traits import UNITS, Traits, choose_unit

__all__ = [
    "BUDGETS",
    "HOOKS",
    "PROJECT",
    "UNITS",
    "Catalogue",
    "Choice",
    "Chooser",
    "Engine",
    "Entry",
    "HookSpecs",
    "NetworkFacts",
    "PipelineFacts",
    "Policy",
    "Profiler",
    "Traits",
    "benches",
    "choose_unit",
    "commands",
    "describe_policy",
    "drivers",
    "find_default_policy",
    "find_hooks",
    "find_owners",
    "flatten",
    "give_budget",
    "hookimpl",
    "launchers",
    "list_budgeted",
    "load_chooser",
    "load_with_extra",
    "models",
    "policies",
    "read_hook_options",
    "refuse_budget",
    "take_budget",
    "with_budget",
]
