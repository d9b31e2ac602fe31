"""Solvers: sigma schedules and the step from one sigma to the next, with declared capabilities.

A solver is put together from a `Parametrisation` (a noise process and what the network predicts),
a sigma grid and an integrator. `ComposedSolver` takes any three; the recipes are named for what
people know and are what a configuration can name.
"""

from erta_framework.sampling.solvers._composed import (
    ComposedSolver,
    SolverRecipe,
    suggest_solver,
)
from erta_framework.sampling.solvers._diffusion_recipes import (
    DDIM,
    ContinuousVPSolver,
    EDMSolver,
    VESolver,
    VPSolver,
)
from erta_framework.sampling.solvers._flow_recipes import (
    FlowAdamsBashforth2,
    FlowEuler,
    FlowSolver,
)
from erta_framework.sampling.solvers._grids import (
    Geometric,
    Grid,
    Karras,
    Shifted,
    Trailing,
    UniformTime,
)
from erta_framework.sampling.solvers._integrators import (
    AdamsBashforth2,
    DPMSolverPP2M,
    Euler,
    Integrator,
)
from erta_framework.sampling.solvers._parametrisation import Parametrisation
from erta_framework.sampling.solvers._processes import (
    VARIANCE_EXPLODING,
    Flow,
    Process,
    VarianceExploding,
)
from erta_framework.sampling.solvers._protocol import (
    KnowsScales,
    Prediction,
    Schedule,
    Solver,
    SolverState,
    as_sigmas,
)
from erta_framework.sampling.solvers._variance_preserving import (
    ContinuousVP,
    DiscreteVP,
    interpolate_time,
)

__all__ = [
    "DDIM",
    "VARIANCE_EXPLODING",
    "AdamsBashforth2",
    "ComposedSolver",
    "ContinuousVP",
    "ContinuousVPSolver",
    "DPMSolverPP2M",
    "DiscreteVP",
    "EDMSolver",
    "Euler",
    "Flow",
    "FlowAdamsBashforth2",
    "FlowEuler",
    "FlowSolver",
    "Geometric",
    "Grid",
    "Integrator",
    "Karras",
    "KnowsScales",
    "Parametrisation",
    "Prediction",
    "Process",
    "Schedule",
    "Shifted",
    "Solver",
    "SolverRecipe",
    "SolverState",
    "Trailing",
    "UniformTime",
    "VESolver",
    "VPSolver",
    "VarianceExploding",
    "as_sigmas",
    "interpolate_time",
    "suggest_solver",
]
