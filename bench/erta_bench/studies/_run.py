"""`StudyRun`: one study on one model, with what its rows are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from rich.console import Console

from erta_bench.core import Bench, Row, Value, make_record
from erta_bench.setting import (
    CALIBRATION_SEEDS,
    SUBSTEPS,
    Reference,
    RunProgress,
    Setting,
    choose_first_order_solver,
    choose_guidance,
    describe_setting,
    open_study_model,
    repeat_prompts,
    spell_device,
)
from erta_framework import Policy, Profile
from erta_framework.calibration import check_substeps
from erta_framework.environment import describe_machine
from erta_framework.errors import InputError


@dataclass(slots=True)
class StudyRun:
    """One study on one model: its rows are compared with the full run and the exact solution.

    Attributes:
        name: The model's name, such as `shapes-wan`.
        setting: Model, prompts and how to sample.
        reference: The full run, and the exact solution.
        bar: Shows what runs.
        profiles: What was calibrated, for the record.
    """

    name: str
    setting: Setting
    reference: Reference
    bar: RunProgress
    profiles: list[Profile] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Steps of every run."""
        return self.setting.steps

    def calibrate(self, profiler: Policy) -> Profile:
        """The profile of a profiler on the calibration prompts, in own noise."""
        self.bar.set_title(f"calibrating {profiler.name}")
        found = self.setting.make_sampler().calibrate(
            self.setting.model, self.setting.calibration, seed=CALIBRATION_SEEDS, profiler=profiler
        )
        self.profiles.append(found)
        return found

    def measure(self, name: str, policies: Iterable[Policy], **facts: Value) -> Row:
        """A row: the measured samples under these policies, on both axes.

        Args:
            name: The row's name.
            policies: What runs.
            facts: Further keys of the row.
        """
        outcome, _ = self.reference.measure(name, policies)
        return make_record(name, outcome, self.reference.outcome, None, facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What a study measures, and how its rows are shown.

    Attributes:
        title: What it asks, in one line.
        run: Measures the rows.
        models: The models that it holds for.
        columns: Keys of the table with their headings.
        section: Key whose change draws a line between rows.
    """

    title: str
    run: Callable[[StudyRun], Sequence[Row]]
    models: tuple[str, ...]
    columns: Mapping[str, str]
    section: str = ""


@torch.no_grad()
def run_study(
    name: str,
    study: Study,
    *,
    model: str,
    samples: int,
    calibration: int,
    steps: int,
    seed: int,
    accelerator: str = "auto",
    substeps: int = SUBSTEPS,
    console: Console | None = None,
) -> Bench:
    """Run a study on a model.

    Args:
        name: The study's name, for the record.
        study: The study.
        model: Name of the model, or `mixture`.
        samples: Samples that are measured; held-out prompts repeat, from other noise.
        calibration: Samples to calibrate on, likewise.
        steps: Steps of every run.
        seed: First seed of the measured samples.
        accelerator: `"auto"`, `"cpu"`, `"cuda"` or `"mps"`.
        substeps: Steps of the exact solution for each step of a run; even.
        console: Where to show what runs; None shows nothing.

    Raises:
        InputError: The study does not hold for the model.
    """
    if model not in study.models:
        raise InputError(
            f"the study {name!r} does not run on {model!r}; give --model "
            f"{' or '.join(study.models)}"
        )
    opened = open_study_model(model)
    setting = Setting(
        model=opened.model,
        calibration=repeat_prompts(opened.calibration, calibration),
        held_out=repeat_prompts(opened.held_out, samples),
        steps=steps,
        guidance=choose_guidance(opened.model),
        batch_size=max(samples, calibration),
        solver=choose_first_order_solver(opened.model),
        accelerator=accelerator,
        substeps=substeps,
    )
    check_substeps(substeps)
    with RunProgress(steps, console) as bar:
        run = StudyRun(model, setting, Reference(setting, seed, bar), bar)
        rows = study.run(run)
    command = (
        f"erta bench study {name} --model {model} --samples {samples} --calibration {calibration} "
        f"--steps {steps} --substeps {substeps} --seed {seed}" + spell_device(accelerator)
    )
    settings = {
        **describe_setting(setting, seed, run.profiles),
        **run.reference.describe(),
        "model": model,
        "steps": steps,
        "samples": samples,
    }
    machine = describe_machine(setting.device)
    return Bench(command, rows, study.columns, settings, section=study.section, machine=machine)
