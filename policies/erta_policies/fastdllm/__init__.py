"""Fast-dLLM: block-wise caches for masked language models."""

from erta_policies.fastdllm._block_caches import FastDLLMDual, FastDLLMPrefix

__all__ = ["FastDLLMDual", "FastDLLMPrefix"]
