"""PromptTea (arXiv 2507.06739): thresholds from prompts, changes from the timestep, one branch."""

from erta_policies.prompttea.profilers import CodebookProfiler, PromptProfiler, RegressionProfiler
from erta_policies.prompttea.recipe import PromptTea
from erta_policies.prompttea.rule import PromptTeaRule
from erta_policies.prompttea.substitute import BranchSubstitute
from erta_policies.prompttea.threshold import PromptThreshold

__all__ = [
    "BranchSubstitute",
    "CodebookProfiler",
    "PromptProfiler",
    "PromptTea",
    "PromptTeaRule",
    "PromptThreshold",
    "RegressionProfiler",
]
