"""Names of the rows that work inside the network, and of those that stand beside them."""

from __future__ import annotations

MODULES = (
    "FORA, modules",
    "TaylorSeer, modules",
    "HiCache, modules",
    "DeepCache",
    "DeepCache, branch 1",
    "PAB, spatial",
    "CFG-Cache",
    "CFG-Cache, no bands",
    "attention extrapolation",
    "FasterCache",
    "H2-Cache",
    "H2-Cache, split after 3",
    "first-block gate",
    "BlockCache",
    "PreciseCache, flash",
)
"""Published methods on places that follow from the network alone."""
PLANS = (
    "Spectrum, block stack",
    "FreqCa, block stack",
    "ClusCa",
    "SmoothCache, up to 8 steps",
    "L2C, greedy",
    "SpeCa",
    "FEB-Cache",
    "ProCache",
    "FastCache",
    "CacheQuant, cut",
    "CacheQuant, blocks",
    "AdaCorrection on FORA",
)
"""Published methods with plans, tokens, surrogates or schedules of their own for each place."""
VARIANTS = (
    "FEB-Cache, noise as it is",
    "FastCache, affine",
    "FastCache, ridge",
    "ProCache, nothing refreshed",
)
"""Other settings of them, which have studies of their own; only `erta bench policies` has these."""
SEARCHED = (
    "CEM + TaylorSeer's line",
    "BudCache search, reuse",
    "LeMiCa's steps, reuse",
)
"""Published planners, searches and lists of whole steps."""
COMPOSED = ("CFG-Cache, no bands + DeepCache",)
"""Recombinations of them."""
WHOLE = (
    "plain, same solver",
    "ERTACache",
    "TaylorSeer, whole output",
    "FORA, whole output",
    "uniform reuse",
    "uniform + line",
    "fitted reuse, multistep plan",
)
"""Whole outputs that methods inside the network are compared with."""
ANCHORS = (
    "plain, same solver",
    "uniform reuse",
    "fitted reuse, multistep plan",
    "FORA, modules",
    "TaylorSeer, modules",
)
"""Rows of the first comparison that the second one repeats."""
