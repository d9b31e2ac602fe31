"""Policies, their hooks and traits, the engine that calls them, and the catalogues."""

from erta_framework.plugins._engine import Engine
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
    "HOOKS",
    "PROJECT",
    "UNITS",
    "Catalogue",
    "Engine",
    "Entry",
    "HookSpecs",
    "Policy",
    "Profiler",
    "Traits",
    "benches",
    "choose_unit",
    "commands",
    "drivers",
    "find_default_policy",
    "find_hooks",
    "find_owners",
    "flatten",
    "hookimpl",
    "launchers",
    "list_budgeted",
    "load_with_extra",
    "models",
    "policies",
    "read_hook_options",
]
