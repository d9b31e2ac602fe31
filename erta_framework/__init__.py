"""erta_framework: caching methods for diffusion models as plugins on one sampling loop."""

from erta_framework.attach import attach
from erta_framework.callbacks import Callback, PictureWriter, ProgressBar, TraceLogger
from erta_framework.engine import Engine
from erta_framework.errors import ErtaError
from erta_framework.guidance import CFG, NoGuidance
from erta_framework.hookspecs import hookimpl
from erta_framework.loop import Request, Result, SamplingLoop
from erta_framework.policy import Policy
from erta_framework.profile import Profile
from erta_framework.records import (
    Answer,
    Call,
    Compute,
    Decision,
    Evaluation,
    Interval,
    Needs,
    Reuse,
    Seam,
    SessionInfo,
    Step,
)
from erta_framework.sampler import Sampler, Samples
from erta_framework.session import Session
from erta_framework.solvers import DDIM, FlowAdamsBashforth2, FlowEuler, Schedule
from erta_framework.trace import Trace

__version__ = "0.1.0"
__all__ = [
    "CFG",
    "DDIM",
    "Answer",
    "Call",
    "Callback",
    "Compute",
    "Decision",
    "Engine",
    "ErtaError",
    "Evaluation",
    "FlowAdamsBashforth2",
    "FlowEuler",
    "Interval",
    "Needs",
    "NoGuidance",
    "PictureWriter",
    "Policy",
    "Profile",
    "ProgressBar",
    "Request",
    "Result",
    "Reuse",
    "Sampler",
    "Samples",
    "SamplingLoop",
    "Schedule",
    "Seam",
    "Session",
    "SessionInfo",
    "Step",
    "Trace",
    "TraceLogger",
    "attach",
    "hookimpl",
]
