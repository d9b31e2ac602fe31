"""Schedule files: those of other projects read and written, through one description of each.

A `ScheduleFormat` is a class in the entry-point group `erta_framework.schedule_formats`.
"""

from erta_framework.budgets.formats._cache_dit import CacheDit, SGLang
from erta_framework.budgets.formats._cache_dit_file import CacheDitFile
from erta_framework.budgets.formats._catalogue import (
    list_formats,
    load_format,
    read_schedule,
    schedule_formats,
    write_schedule,
)
from erta_framework.budgets.formats._document import EVERY, ScheduleDocument
from erta_framework.budgets.formats._format import ScheduleFormat, refuse_keys
from erta_framework.budgets.formats._plain import StepList, StepMask
from erta_framework.budgets.formats._reading import (
    MOST_STEPS,
    as_schedule,
    check_facts,
    read_mask,
    read_number,
    read_numbers,
    read_steps,
    require_object,
    settle_steps,
    split_facts,
)
from erta_framework.budgets.formats._run_lengths import (
    as_mask,
    expand_run_lengths,
    to_run_lengths,
)

__all__ = [
    "EVERY",
    "MOST_STEPS",
    "CacheDit",
    "CacheDitFile",
    "SGLang",
    "ScheduleDocument",
    "ScheduleFormat",
    "StepList",
    "StepMask",
    "as_mask",
    "as_schedule",
    "check_facts",
    "expand_run_lengths",
    "list_formats",
    "load_format",
    "read_mask",
    "read_number",
    "read_numbers",
    "read_schedule",
    "read_steps",
    "refuse_keys",
    "require_object",
    "schedule_formats",
    "settle_steps",
    "split_facts",
    "to_run_lengths",
    "write_schedule",
]
