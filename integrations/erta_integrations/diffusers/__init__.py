"""Caching on unmodified diffusers pipelines."""

from erta_integrations.diffusers.attach import Attachment, attach
from erta_integrations.diffusers.schedulers import CAPABILITIES, Capability, Support

__all__ = ["CAPABILITIES", "Attachment", "Capability", "Support", "attach"]
