"""Sampling with any network: `Sampler`, the loop below it, solvers, guidance and callbacks."""

from erta_framework.sampling._calibration_runs import CalibrationRuns, LoopSamples
from erta_framework.sampling._callbacks import (
    BatchEnd,
    Callback,
    Observers,
    PictureWriter,
    ProgressBar,
    RunStart,
    TraceLogger,
)
from erta_framework.sampling._catalogues import open_guidance_catalogue, open_solver_catalogue
from erta_framework.sampling._device import resolve_device
from erta_framework.sampling._inputs import repeat_batches
from erta_framework.sampling._loop import (
    Request,
    Result,
    SamplingLoop,
    adjust_guided,
    list_capabilities,
)
from erta_framework.sampling._network_call import (
    Denoiser,
    DenoiserCall,
    as_times,
    call_denoiser,
)
from erta_framework.sampling._sampler import Sampler
from erta_framework.sampling._samples import Samples, TextSampler
from erta_framework.sampling._solve import FineSteps, LatentRecorder, make_second_order, solve
from erta_framework.sampling._text_model import TextModel, sample_noise
from erta_framework.sampling.guidance import CFG, Branch, Guidance, NoGuidance
from erta_framework.sampling.solvers import DDIM, FlowAdamsBashforth2, FlowEuler, Schedule, Solver

__all__ = [
    "CFG",
    "DDIM",
    "BatchEnd",
    "Branch",
    "CalibrationRuns",
    "Callback",
    "Denoiser",
    "DenoiserCall",
    "FineSteps",
    "FlowAdamsBashforth2",
    "FlowEuler",
    "Guidance",
    "LatentRecorder",
    "LoopSamples",
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
    "adjust_guided",
    "as_times",
    "call_denoiser",
    "list_capabilities",
    "make_second_order",
    "open_guidance_catalogue",
    "open_solver_catalogue",
    "repeat_batches",
    "resolve_device",
    "sample_noise",
    "solve",
]
