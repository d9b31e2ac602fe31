"""Sampling: see the documentation."""

from erta_framework.sampling._callbacks import (
    BatchEnd,
    Callback,
    Observers,
    PictureWriter,
    ProgressBar,
    RunStart,
    TraceLogger,
)
from erta_framework.sampling._guidance import CFG, Branch, Guidance, NoGuidance
from erta_framework.sampling._loop import (
    Denoiser,
    Request,
    Result,
    SamplingLoop,
    evaluation,
    offered,
    other_evaluation,
    row_evaluation,
    times_of,
)
from erta_framework.sampling._sampler import Sampler, Samples, TextSampler, copied, resolve_device
from erta_framework.sampling._solvers import DDIM, FlowAdamsBashforth2, FlowEuler, Schedule, Solver
from erta_framework.sampling._text_model import TextModel, sample_noise

__all__ = [
    "CFG",
    "DDIM",
    "BatchEnd",
    "Branch",
    "Callback",
    "Denoiser",
    "FlowAdamsBashforth2",
    "FlowEuler",
    "Guidance",
    "NoGuidance",
    "Observers",
    "PictureWriter",
    "ProgressBar",
    "Request",
    "Result",
    "RunStart",
    "Sampler",
    "Samples",
    "SamplingLoop",
    "Schedule",
    "Solver",
    "TextModel",
    "TextSampler",
    "TraceLogger",
    "copied",
    "evaluation",
    "offered",
    "other_evaluation",
    "resolve_device",
    "row_evaluation",
    "sample_noise",
    "times_of",
]
