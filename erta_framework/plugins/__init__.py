"""Policies and what holds them together: hooks, traits, the engine, the catalogues."""

from erta_framework.plugins._engine import Engine, find_hooks, hook_options
from erta_framework.plugins._hookspecs import HOOKS, PROJECT, HookSpecs, hookimpl
from erta_framework.plugins._policy import Policy, Profiler, flatten, owners_of
from erta_framework.plugins._registry import (
    FIRST_PARTY,
    Catalogue,
    Entry,
    benches,
    budgeted,
    commands,
    default_policy,
    drivers,
    launchers,
    load_with_extra,
    models,
    policies,
)
from erta_framework.plugins._traits import UNITS, Traits, finest_unit

__all__ = [
    "FIRST_PARTY",
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
    "budgeted",
    "commands",
    "default_policy",
    "drivers",
    "find_hooks",
    "finest_unit",
    "flatten",
    "hook_options",
    "hookimpl",
    "launchers",
    "load_with_extra",
    "models",
    "owners_of",
    "policies",
]
