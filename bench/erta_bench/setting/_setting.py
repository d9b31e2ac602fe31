"""What all rows of a benchmark share, and what it refuses to measure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from erta_bench.core import Value
from erta_bench.setting._progress import RunProgress
from erta_bench.setting._solutions import SUBSTEPS
from erta_bench.setting._timing import Seconds, time_call
from erta_framework.calibration import Profile, Solution, check_substeps
from erta_framework.config import build_policies
from erta_framework.errors import InputError
from erta_framework.plugins import Policy
from erta_framework.sampling import (
    CFG,
    Callback,
    Guidance,
    Sampler,
    Samples,
    Solver,
    TextModel,
    TextSampler,
    resolve_device,
)

SEEDS_APART = 10_000
"""Distance of the first seeds of two seed sets: more than a set has samples."""
CALIBRATION_SEEDS = 1_000_000
"""First seed of calibration, above those of every seed set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all rows share.

    Attributes:
        model: The model.
        calibration: Prompts to calibrate on.
        held_out: Prompts that are measured.
        steps: Steps of the full run.
        guidance: How branches combine.
        batch_size: Samples a batch.
        solver: Solver of all rows; by default Euler's of a velocity.
        accelerator: `"auto"`, `"cpu"`, `"cuda"` or `"mps"`.
        substeps: Steps of the exact solution for each step of the full run; even.
    """

    model: TextModel
    calibration: Sequence[str]
    held_out: Sequence[str]
    steps: int = 50
    guidance: Guidance = field(default_factory=lambda: CFG(scale=3.0))
    batch_size: int = 16
    solver: Solver | None = None
    accelerator: str = "auto"
    substeps: int = SUBSTEPS

    @property
    def device(self) -> torch.device:
        """Where all rows run."""
        return resolve_device(self.accelerator, 1)

    def make_sampler(
        self,
        policies: Iterable[Policy] = (),
        steps: int | None = None,
        solver: Solver | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> TextSampler:
        """A sampler with these policies; the rest is shared."""
        return Sampler(
            tuple(policies),
            callbacks,
            solver=solver or self.solver,
            guidance=self.guidance,
            num_steps=steps or self.steps,
            batch_size=self.batch_size,
            accelerator=self.accelerator,
        )

    def sample_held_out(self, sampler: TextSampler, seed: int) -> tuple[Samples, Seconds]:
        """Sample the measured prompts, prompt k from the noise of `seed + k`."""
        return time_call(lambda: sampler.sample(self.model, self.held_out, seed=seed))

    def solve_held_out(self, seed: int) -> Solution:
        """The nearly exact solution of the measured prompts, from the same noise."""
        sampler = self.make_sampler()
        return sampler.solve(self.model, self.held_out, seed=seed, substeps=self.substeps)

    @property
    def branches(self) -> int:
        """Guidance branches of a step."""
        return len(self.guidance.names)

    @property
    def batches(self) -> int:
        """Batches of the measured prompts."""
        return -(-len(self.held_out) // self.batch_size)

    @property
    def calibration_batches(self) -> int:
        """Batches of the calibration prompts."""
        return -(-len(self.calibration) // self.batch_size)


def spell_device(device: str) -> str:
    """How a command names its device: not at all where none was asked for.

    Example:
        >>> spell_device("cuda"), spell_device("auto")
        (' --device cuda', '')
    """
    return "" if device == "auto" else f" --device {device}"


def require_measurable(setting: Setting, calls: Sequence[int], seed_sets: int) -> None:
    """Refuse what cannot be measured.

    Raises:
        InputError: Names the value and what would work.
    """
    if not setting.calibration or not setting.held_out:
        raise InputError(
            f"{len(setting.calibration)} calibration prompts and {len(setting.held_out)} measured "
            "ones; give at least one of each"
        )
    require_disjoint(setting.calibration, setting.held_out)
    bad = [number for number in calls if not 2 <= number <= setting.steps]
    if bad or not calls:
        raise InputError(
            f"calls is {list(calls)}; give numbers from 2 to the {setting.steps} steps"
        )
    check_substeps(setting.substeps)
    if seed_sets < 1 or len(setting.held_out) > SEEDS_APART:
        raise InputError(
            f"{seed_sets} seed sets of {len(setting.held_out)} prompts; give at least one set and "
            f"at most {SEEDS_APART} prompts"
        )


def require_disjoint(calibration: Sequence[str], held_out: Sequence[str]) -> None:
    """Refuse prompts that are both calibrated on and measured.

    Raises:
        InputError: Names the first of them.
    """
    common = sorted(set(calibration) & set(held_out))
    if common:
        raise InputError(f"the prompt {common[0]!r} is calibrated on and measured; keep them apart")


def calibrate_residuals(setting: Setting, bar: RunProgress, seed: int) -> Profile:
    """Calibrate a residual profile on the calibration prompts."""
    bar.set_title("calibrating")
    (profiler,) = build_policies(["residual_profiler"])
    sampler = setting.make_sampler(callbacks=[bar])
    return sampler.calibrate(setting.model, setting.calibration, seed=seed, profiler=profiler)


def describe_setting(setting: Setting, seed: int, profiles: Sequence[Profile]) -> dict[str, Value]:
    """The settings that a record keeps beside its rows."""
    return {
        **describe_model(setting.model),
        "guidance": repr(setting.guidance),
        "batch_size": setting.batch_size,
        "first_seed": seed,
        "calibration_prompts": len(setting.calibration),
        "calibration_samples": sum(profile.samples for profile in profiles),
    }


def describe_model(model: TextModel, prefix: str = "model") -> dict[str, Value]:
    """The fingerprint of a model, as a record keeps it."""
    return {f"{prefix}.{key}": value for key, value in model.fingerprint().items()}
