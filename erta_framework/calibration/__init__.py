"""Calibration: runs a profiler on full runs and merges what it emits into a `Profile`."""

from erta_framework.calibration._calibrate import (
    SampleWith,
    SampleWithGradients,
    calibrate,
    describe_run,
    describe_samples,
    find_profiler,
    require_profiler,
)
from erta_framework.calibration._entries import Entry, ProfileKind, StepSeries
from erta_framework.calibration._fingerprint import make_fingerprint
from erta_framework.calibration._network_memory import (
    GRADIENT_CALLS,
    NetworkMemory,
    makes_more_runs,
)
from erta_framework.calibration._periods import find_period
from erta_framework.calibration._profile import MEASURED, Profile
from erta_framework.calibration._quantized import describe_quantized
from erta_framework.calibration._references import (
    HUB,
    FolderStore,
    ProfileReference,
    ProfileStore,
    is_reference,
    open_profile_store,
    refuse_reference,
)
from erta_framework.calibration._solution import Solution, check_substeps, divide_steps

__all__ = [
    "GRADIENT_CALLS",
    "HUB",
    "MEASURED",
    "Entry",
    "FolderStore",
    "NetworkMemory",
    "Profile",
    "ProfileKind",
    "ProfileReference",
    "ProfileStore",
    "SampleWith",
    "SampleWithGradients",
    "Solution",
    "StepSeries",
    "calibrate",
    "check_substeps",
    "describe_quantized",
    "describe_run",
    "describe_samples",
    "divide_steps",
    "find_period",
    "find_profiler",
    "is_reference",
    "make_fingerprint",
    "makes_more_runs",
    "open_profile_store",
    "refuse_reference",
    "require_profiler",
]
