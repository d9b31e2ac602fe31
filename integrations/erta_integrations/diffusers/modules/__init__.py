"""Places inside a network: which blocks, attention, MLPs and stages there are, and what they cost.

Only structure says what a module is: classes, attributes and the source of `forward`.
"""

from erta_framework.modules import (
    Measurement,
    measure,
    measure_costs,
    measure_once,
)
from erta_integrations.diffusers.modules._discovery import find_places
from erta_integrations.diffusers.modules._finder import PIPELINE_FINDER, PipelineFinder
from erta_integrations.diffusers.modules._groups import (
    PlaceGroup,
    describe_places,
    inspect_places,
)
from erta_integrations.diffusers.modules._memory import (
    check_memory,
    count_state_bytes,
    format_bytes,
    parse_bytes,
)
from erta_integrations.diffusers.modules._unet import find_branches, find_cut

__all__ = [
    "PIPELINE_FINDER",
    "Measurement",
    "PipelineFinder",
    "PlaceGroup",
    "check_memory",
    "count_state_bytes",
    "describe_places",
    "find_branches",
    "find_cut",
    "find_places",
    "format_bytes",
    "inspect_places",
    "measure",
    "measure_costs",
    "measure_once",
    "parse_bytes",
]
