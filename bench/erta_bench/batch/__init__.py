"""What decisions sample by sample save in a batch of easy and hard prompts."""

from erta_bench.batch._batch import compare_modes
from erta_bench.batch._modes import BatchSetting

__all__ = ["BatchSetting", "compare_modes"]
