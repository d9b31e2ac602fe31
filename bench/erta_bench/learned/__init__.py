"""A solver whose grid and weights are trained by gradient: a peer of fitted reuse.

`Trainer` trains one through the whole run of a network, `LearnedSolver` is the result and runs in
`Sampler` as any other solver. Our own implementation of a published family; see the documentation's
page on learned solvers.
"""

from erta_bench.learned._parameters import BASES, Base, SolverParameters
from erta_bench.learned._solver import Feature, LearnedSolver
from erta_bench.learned._training import (
    FORWARDS,
    Trained,
    Trainer,
    Training,
    TrainingSamples,
    find_form,
    run_solver,
)

__all__ = [
    "BASES",
    "FORWARDS",
    "Base",
    "Feature",
    "LearnedSolver",
    "SolverParameters",
    "Trained",
    "Trainer",
    "Training",
    "TrainingSamples",
    "find_form",
    "run_solver",
]
