"""The `erta` command, and what the commands of other distributions share with it.

A distribution adds a command through the entry-point group `erta_framework.commands`; the entry is
a function or a `typer.Typer`.
"""

from typing import TYPE_CHECKING

from erta_framework._deferred import defer_face

if TYPE_CHECKING:
    from erta_framework.cli._app import app, main
    from erta_framework.cli._calibrate import find_calibrator, make_blank_policy
    from erta_framework.cli._candidates import describe_policies, needs_profile
    from erta_framework.cli._installed import BenchGroup, InstalledCommand
    from erta_framework.cli._models import (
        find_own_demo,
        find_shipped_profile,
        get_demo_prompts,
        load_model,
    )
    from erta_framework.cli._options import Device
    from erta_framework.cli._policy_options import PolicyOptions
    from erta_framework.cli._policy_specs import is_complete, read_policies
    from erta_framework.cli._progress import OverallProgress
    from erta_framework.cli._settings import read_lines
    from erta_framework.cli._show_comparison import show_comparison
    from erta_framework.console import make_console

__all__ = [
    "BenchGroup",
    "Device",
    "InstalledCommand",
    "OverallProgress",
    "PolicyOptions",
    "app",
    "describe_policies",
    "find_calibrator",
    "find_own_demo",
    "find_shipped_profile",
    "get_demo_prompts",
    "is_complete",
    "load_model",
    "main",
    "make_blank_policy",
    "make_console",
    "needs_profile",
    "read_lines",
    "read_policies",
    "show_comparison",
]

defer_face(
    __name__,
    "erta_framework.cli._app",
    "erta_framework.cli._installed",
    "erta_framework.console",
    "erta_framework.cli._models",
    "erta_framework.cli._options",
    "erta_framework.cli._policy_options",
    "erta_framework.cli._policy_specs",
    "erta_framework.cli._progress",
    "erta_framework.cli._settings",
    "erta_framework.cli._show_comparison",
    "erta_framework.cli._calibrate",
    "erta_framework.cli._candidates",
)
