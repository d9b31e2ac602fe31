"""The commands `erta bench ...`; each prints a table and takes `--json FILE`.

The commands of the catalogue import what they measure when they run, so that `erta bench --help` is
fast and a package that is missing is named by the command that needs it.
"""

from erta_bench.cli._app import app
from erta_bench.cli._comparison import peers_command, policies_command
from erta_bench.cli._families import families_command
from erta_bench.cli._fitted import fitted_command
from erta_bench.cli._pipelines import attach_overhead_command, pipeline_command
from erta_bench.cli._scale import scale_command, simulate_command
from erta_bench.cli._study import study_command

__all__ = [
    "app",
    "attach_overhead_command",
    "families_command",
    "fitted_command",
    "peers_command",
    "pipeline_command",
    "policies_command",
    "scale_command",
    "simulate_command",
    "study_command",
]
