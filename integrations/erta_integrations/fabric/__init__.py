"""Many devices and many machines: sampling jobs, and ranks that share one sample.

* `jobs`: many prompts in one folder, any number of processes; without Lightning.
* `agreement`: ranks that compute one sample together.
* This package: both, launched by Lightning Fabric, a callback for a `LightningModule`, and metrics
  for any logger of Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from erta_integrations.fabric._callback import PolicyCallback, log_traces
    from erta_integrations.fabric._launch import FabricLauncher, build_fabric, sample_job, setup
    from erta_integrations.fabric.agreement import (
        Agreement,
        AgreementError,
        CFGParallel,
        Ledger,
        SamePlan,
        add_agreement,
        find_group,
    )

__all__ = [
    "Agreement",
    "AgreementError",
    "CFGParallel",
    "FabricLauncher",
    "Ledger",
    "PolicyCallback",
    "SamePlan",
    "add_agreement",
    "build_fabric",
    "find_group",
    "log_traces",
    "sample_job",
    "setup",
]

CALLBACK = ("PolicyCallback", "log_traces")
LAUNCH = ("FabricLauncher", "build_fabric", "sample_job", "setup")


def __getattr__(name: str) -> Any:
    # lightning takes seconds to import, and `fabric.jobs` does without it
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    callback = "_callback" if name in CALLBACK else "agreement"
    home = "_launch" if name in LAUNCH else callback
    return getattr(import_module(f"{__name__}.{home}"), name)
