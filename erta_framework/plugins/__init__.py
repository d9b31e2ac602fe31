"""Plugins: see the documentation."""

from erta_framework.plugins._engine import Engine, hook_options
from erta_framework.plugins._hookspecs import HOOKS, PROJECT, HookSpecs, hookimpl
from erta_framework.plugins._policy import Policy, flatten
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

__all__ = [
    "FIRST_PARTY",
    "HOOKS",
    "PROJECT",
    "Catalogue",
    "Engine",
    "Entry",
    "HookSpecs",
    "Policy",
    "benches",
    "budgeted",
    "commands",
    "default_policy",
    "drivers",
    "flatten",
    "hook_options",
    "hookimpl",
    "launchers",
    "load_with_extra",
    "models",
    "policies",
]
