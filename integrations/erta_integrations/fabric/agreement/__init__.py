"""Ranks that share one sample: they decide alike, and guidance may be divided between them.

`find_group` names the ranks that compute together. `add_agreement` puts an `Agreement` before the
policies where those ranks might decide differently, or a `SamePlan`, which compares static
schedules once a request. `CFGParallel` divides the two branches of guidance between two ranks.
"""

from erta_integrations.fabric.agreement._cfg import CFGParallel
from erta_integrations.fabric.agreement._collectives import AgreementError, Ledger
from erta_integrations.fabric.agreement._groups import find_group
from erta_integrations.fabric.agreement._plans import SamePlan
from erta_integrations.fabric.agreement._policy import Agreement, add_agreement

__all__ = [
    "Agreement",
    "AgreementError",
    "CFGParallel",
    "Ledger",
    "SamePlan",
    "add_agreement",
    "find_group",
]
