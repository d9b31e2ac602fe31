"""Many devices and many machines: sampling jobs, and ranks that share one sample."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from erta_integrations.fabric.agreement import (
        Agreement,
        AgreementError,
        CFGParallel,
        Ledger,
        agreed,
        group_of,
    )
    from erta_integrations.fabric.callback import PolicyCallback
    from erta_integrations.fabric.launch import FabricLauncher, build, sample_job, setup

__all__ = [
    "Agreement",
    "AgreementError",
    "CFGParallel",
    "FabricLauncher",
    "Ledger",
    "PolicyCallback",
    "agreed",
    "build",
    "group_of",
    "sample_job",
    "setup",
]

HOMES = {
    "agreement": ("Agreement", "AgreementError", "CFGParallel", "Ledger", "agreed", "group_of"),
    "callback": ("PolicyCallback",),
    "launch": ("FabricLauncher", "build", "sample_job", "setup"),
}


def __getattr__(name: str) -> Any:
    # lightning takes seconds to import, and the jobs themselves do without it
    for module, names in HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
