"""What more processes gain, and what a job of a thousand ranks costs the file system."""

from erta_bench.scale._processes import ScaleError
from erta_bench.scale._simulate import simulate_jobs
from erta_bench.scale._simulated_job import Scenario, SimulationError
from erta_bench.scale._speed import measure_scale

__all__ = ["ScaleError", "Scenario", "SimulationError", "measure_scale", "simulate_jobs"]
