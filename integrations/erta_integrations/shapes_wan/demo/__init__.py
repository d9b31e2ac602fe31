"""Sample held-out prompts with and without ERTACache; writes pictures and a report."""

from erta_integrations.shapes_wan.demo._command import demo

__all__ = ["demo"]
