"""erta_framework: caching methods for diffusion models as plugins on one sampling loop."""

from typing import TYPE_CHECKING

from erta_framework._deferred import defer_face

if TYPE_CHECKING:
    from erta_framework.attach import attach, disable, enable
    from erta_framework.calibration import Profile
    from erta_framework.errors import ErtaError
    from erta_framework.plugins import Engine, Policy, Profiler, Traits, hookimpl
    from erta_framework.sampling import (
        Callback,
        PictureWriter,
        ProgressBar,
        Request,
        Result,
        Sampler,
        Samples,
        SamplingLoop,
        TraceLogger,
    )
    from erta_framework.sampling.guidance import CFG, NoGuidance
    from erta_framework.sampling.solvers import DDIM, FlowAdamsBashforth2, FlowEuler, Schedule
    from erta_framework.session import (
        Answer,
        Call,
        Compute,
        Decision,
        Evaluation,
        FunctionNetwork,
        Interval,
        Needs,
        Network,
        Reuse,
        Seam,
        Session,
        SessionInfo,
        Site,
        Step,
        Trace,
    )

__version__ = "0.2.0"
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
    "FunctionNetwork",
    "Interval",
    "Needs",
    "Network",
    "NoGuidance",
    "PictureWriter",
    "Policy",
    "Profile",
    "Profiler",
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
    "Site",
    "Step",
    "Trace",
    "TraceLogger",
    "Traits",
    "attach",
    "disable",
    "enable",
    "hookimpl",
]

defer_face(
    __name__,
    "erta_framework.errors",
    "erta_framework.session",
    "erta_framework.calibration",
    "erta_framework.plugins",
    "erta_framework.sampling",
    "erta_framework.sampling.guidance",
    "erta_framework.sampling.solvers",
    "erta_framework.attach",
)
