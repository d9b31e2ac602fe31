"""What every benchmark starts from: a model with its prompts, what rows share, and the clocks."""

from erta_bench.setting._models import (
    DemoModel,
    choose_first_order_solver,
    choose_guidance,
    list_solvers,
    open_model,
    open_study_model,
    read_prompts,
    repeat_prompts,
)
from erta_bench.setting._progress import RunProgress
from erta_bench.setting._reference import Reference
from erta_bench.setting._setting import (
    CALIBRATION_SEEDS,
    SEEDS_APART,
    Setting,
    calibrate_residuals,
    describe_model,
    describe_setting,
    require_disjoint,
    require_measurable,
    spell_device,
)
from erta_bench.setting._solutions import SUBSTEPS, ExactSolutions
from erta_bench.setting._specs import PROFILE, Spec, build_policy
from erta_bench.setting._timing import Seconds, time_call

__all__ = [
    "CALIBRATION_SEEDS",
    "PROFILE",
    "SEEDS_APART",
    "SUBSTEPS",
    "DemoModel",
    "ExactSolutions",
    "Reference",
    "RunProgress",
    "Seconds",
    "Setting",
    "Spec",
    "build_policy",
    "calibrate_residuals",
    "choose_first_order_solver",
    "choose_guidance",
    "describe_model",
    "describe_setting",
    "list_solvers",
    "open_model",
    "open_study_model",
    "read_prompts",
    "repeat_prompts",
    "require_disjoint",
    "require_measurable",
    "spell_device",
    "time_call",
]
