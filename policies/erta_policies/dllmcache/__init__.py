"""dLLM-Cache: tokens whose values changed most are computed again."""

from erta_policies.dllmcache._policy import DLLMCache

__all__ = ["DLLMCache"]
