"""Calibration: see the documentation."""

from erta_framework.calibration._profile import MEASURED, Profile, fingerprint_of

__all__ = ["MEASURED", "Profile", "fingerprint_of"]
