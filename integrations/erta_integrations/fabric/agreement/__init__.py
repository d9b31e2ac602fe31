"""Ranks that share one sample: they decide alike, and guidance may be divided between them."""

from erta_integrations.fabric.agreement.cfg import CFGParallel
from erta_integrations.fabric.agreement.groups import group_of
from erta_integrations.fabric.agreement.policy import Agreement, agreed
from erta_integrations.fabric.agreement.wire import AgreementError, Ledger

__all__ = ["Agreement", "AgreementError", "CFGParallel", "Ledger", "agreed", "group_of"]
