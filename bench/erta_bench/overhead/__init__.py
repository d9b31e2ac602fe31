"""What the engine itself costs: microseconds a step and a visit, and device synchronisations.

`measure_overhead` measures the own loop, `measure_sites` the gates of modules.
`erta_bench.overhead.attached` measures an attached pipeline; it is imported by itself, since it
needs diffusers and `tiny_pipelines`.
"""

from erta_bench.overhead._overhead import measure_overhead
from erta_bench.overhead._sites import measure_sites
from erta_bench.overhead._syncs import SyncCounter

__all__ = ["SyncCounter", "measure_overhead", "measure_sites"]
