"""Profiles on the Hugging Face hub: `profile="hf:owner/name"`, `erta profile push` and `pull`.

Needs the extra `hub`: `pip install "erta-framework[hub]"`.
"""

from erta_integrations.hub._store import HubStore

__all__ = ["HubStore"]
