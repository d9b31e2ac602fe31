"""PromptTea (arXiv 2507.06739): thresholds from prompts, changes from timesteps, one branch."""

from erta_policies.prompttea._profilers import CodebookProfiler, RegressionProfiler
from erta_policies.prompttea._prompt_profiler import PromptProfiler
from erta_policies.prompttea._recipe import PromptTea
from erta_policies.prompttea._rule import PromptTeaRule
from erta_policies.prompttea._substitute import BranchSubstitute
from erta_policies.prompttea._threshold import PromptThreshold

__all__ = [
    "BranchSubstitute",
    "CodebookProfiler",
    "PromptProfiler",
    "PromptTea",
    "PromptTeaRule",
    "PromptThreshold",
    "RegressionProfiler",
]
