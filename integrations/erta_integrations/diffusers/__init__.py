"""Caching on unmodified diffusers pipelines."""

from erta_integrations.diffusers.attach import Attachment, attach
from erta_integrations.diffusers.schedulers import CAPABILITIES, Capability, Support
from erta_integrations.diffusers.trunk import inspect

__all__ = ["CAPABILITIES", "Attachment", "Capability", "Support", "attach", "inspect"]
