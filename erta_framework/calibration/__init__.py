"""What calibration measures: rounds of a profiler, and the profile that they give."""

from erta_framework.calibration._calibrate import (
    calibrate,
    describe_run,
    describe_samples,
    find_profiler,
    require_profiler,
)
from erta_framework.calibration._fingerprint import make_fingerprint
from erta_framework.calibration._profile import MEASURED, Profile

__all__ = [
    "MEASURED",
    "Profile",
    "calibrate",
    "describe_run",
    "describe_samples",
    "find_profiler",
    "make_fingerprint",
    "require_profiler",
]
