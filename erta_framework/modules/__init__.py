"""Places inside a network: blocks, attention, MLPs and stages that policies own and reuse."""

from erta_framework.modules._actions import (
    KEEP,
    PASS,
    SKIP,
    Action,
    Ask,
    Keep,
    Of,
    Pass,
    ReuseKept,
    Rows,
    Skip,
    Tokens,
    Weights,
)
from erta_framework.modules._cells import Cells
from erta_framework.modules._costs import (
    Measurement,
    measure,
    measure_costs,
    measure_once,
    run_eagerly,
)
from erta_framework.modules._discovery import OUTSIDE, find_places
from erta_framework.modules._finder import Finder, PlaceFinder
from erta_framework.modules._forms import list_tensors
from erta_framework.modules._gated_network import GatedNetwork
from erta_framework.modules._gates import Gates
from erta_framework.modules._memory import (
    check_memory,
    count_output_bytes,
    count_state_bytes,
    format_bytes,
    parse_bytes,
)
from erta_framework.modules._module_run import ModuleRun, check_planned
from erta_framework.modules._owners import Assign, Owner, check_owners, resolve_places
from erta_framework.modules._parts import MODULES, Agree, Parts
from erta_framework.modules._places import KINDS, Kind, Place
from erta_framework.modules._seam import ModuleSeam
from erta_framework.modules._select import (
    Cut,
    Named,
    Select,
    Selection,
    describe_places,
    select_places,
)
from erta_framework.modules._streams import find_returned_names
from erta_framework.modules._unet import find_branches, find_cut
from erta_framework.modules._visit import Visit

__all__ = [
    "KEEP",
    "KINDS",
    "MODULES",
    "OUTSIDE",
    "PASS",
    "SKIP",
    "Action",
    "Agree",
    "Ask",
    "Assign",
    "Cells",
    "Cut",
    "Finder",
    "GatedNetwork",
    "Gates",
    "Keep",
    "Kind",
    "Measurement",
    "ModuleRun",
    "ModuleSeam",
    "Named",
    "Of",
    "Owner",
    "Parts",
    "Pass",
    "Place",
    "PlaceFinder",
    "ReuseKept",
    "Rows",
    "Select",
    "Selection",
    "Skip",
    "Tokens",
    "Visit",
    "Weights",
    "check_memory",
    "check_owners",
    "check_planned",
    "count_output_bytes",
    "count_state_bytes",
    "describe_places",
    "find_branches",
    "find_cut",
    "find_places",
    "find_returned_names",
    "format_bytes",
    "list_tensors",
    "measure",
    "measure_costs",
    "measure_once",
    "parse_bytes",
    "resolve_places",
    "run_eagerly",
    "select_places",
]
