"""Is cached noise too long or too short, and what does a factor on it do to the samples?"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from torch import Tensor

from erta_bench.core import TWO_AXES, Row
from erta_bench.studies._run import Study, StudyRun
from erta_framework import Call, Policy, Seam, Step, Traits, hookimpl
from erta_framework.errors import CapabilityError
from erta_framework.sampling import Guidance
from erta_framework.session import TRIAL, Guided
from erta_policies.febcache import ModuleTable
from erta_policies.noise_scale import NoiseScale

RUNS: Final[Mapping[str, str]] = {
    "published table": "published",
    "every second step": "NB" * 25,
    "every third step": "NBB" * 16 + "NB",
}
"""Tables for 50 steps."""
FACTORS: Final = (0.96, 0.98, 0.99, 1.0, 1.01, 1.02, 1.04)
SCALED: Final = ("published table", "every second step")
EARLY: Final = 0.6


@dataclass(slots=True, eq=False)
class Lengths:
    """Sums over samples and reused steps of one part of a run.

    Attributes:
        count: Samples, at all these steps.
        length: Of `|cached| / |full|`.
        factor: Of the factor with which the cached noise is nearest to the full one.
        error: Of `|cached - full| / |full|`.
        left: Of the same with that factor.
    """

    count: int = 0
    length: float = 0.0
    factor: float = 0.0
    error: float = 0.0
    left: float = 0.0

    def add(self, full: Tensor, cached: Tensor) -> None:
        """Compare the noise that two guided predictions stand for, `[B, C, ...]`."""
        a, b = full.flatten(1).double(), cached.flatten(1).double()
        length, own = a.norm(dim=1), b.norm(dim=1)
        factor = (a * b).sum(dim=1) / own.square()
        self.count += len(a)
        self.length += float((own / length).sum())
        self.factor += float(factor.sum())
        self.error += float(((a - b).norm(dim=1) / length).sum())
        self.left += float(((a - factor[:, None] * b).norm(dim=1) / length).sum())

    def describe(self) -> dict[str, float]:
        """The means."""
        return {
            name: getattr(self, name) / self.count for name in ("length", "factor", "error", "left")
        }


class NoiseWatch(Policy):
    """Compares the guided noise of reused steps with that of a trial without reuse.

    Source: ours.

    Attributes:
        guidance: Combines the branches, as the sampler does.
        steps: The reused steps.
        found: Gets what was found in the early and the late part of the run.
    """

    traits = Traits(seams=frozenset(Seam), requires=frozenset({TRIAL}))

    guidance: Guidance
    steps: tuple[int, ...]
    found: dict[str, Lengths] = field(default_factory=dict)

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        if step.index in self.steps:
            step.session.state_of(self, dict[str, Tensor])[call.branch] = call.trial()
        return (yield)

    @hookimpl(wrapper=True)
    def adjust_prediction(self, step: Step, guided: Guided) -> Generator[None, Tensor, Tensor]:
        prediction = yield
        if step.index in self.steps:
            tried = step.session.state_of(self, dict[str, Tensor])
            part = "first 60 %" if step.index < EARLY * step.num_steps else "last 40 %"
            kind = step.session.prediction
            full = read_noise(self.guidance.combine(tried), guided, kind)
            cached = read_noise(guided.prediction, guided, kind)
            self.found.setdefault(part, Lengths()).add(full, cached)
            tried.clear()
        return prediction


def read_noise(prediction: Tensor, guided: Guided, kind: str) -> Tensor:
    """The noise that a guided prediction stands for, `[B, C, ...]`.

    Raises:
        CapabilityError: It is neither noise nor a velocity, which are all that the models predict.
    """
    if kind == "epsilon":
        return prediction
    if kind == "velocity":
        return guided.x + guided.alpha * prediction
    raise CapabilityError(f"the study reads noise from epsilon and velocity, not from {kind!r}")


def list_factors(steps: int) -> Iterable[tuple[str, NoiseScale]]:
    """Names and policies of the factors that are tried."""
    curve = NoiseScale().factors(steps)
    yield "published b(t)", NoiseScale()
    yield "1 / b(t)", NoiseScale(scale=tuple(1.0 / factor for factor in curve))
    for factor in FACTORS:
        yield f"{factor:.2f}", NoiseScale(scale=factor)


def study_scale(run: StudyRun) -> Sequence[Row]:
    """Each cached run, and the run without reuse, under each factor."""
    rows: list[Row] = []
    for name in ("no reuse", *SCALED):
        cached = [ModuleTable(table=RUNS[name])] if name in RUNS else []
        for factor, scale in list_factors(run.steps):
            if cached or factor != "1.00":  # that is the full run itself
                rows.append(run.measure(name, [*cached, scale], factor=factor))
    return rows


def study_length(run: StudyRun) -> Sequence[Row]:
    """How long the noise of reused steps is, against that without reuse on the same latents."""
    rows: list[Row] = []
    curve = NoiseScale().factors(run.steps)
    for name, text in RUNS.items():
        table = ModuleTable(table=text)
        reused = tuple(k for k, state in enumerate(table.find_table().states) if state != "N")
        watch = NoiseWatch(guidance=run.setting.guidance, steps=reused)
        row = run.measure(name, [watch, table])
        for part, lengths in watch.found.items():
            early = [k for k in reused if (k < EARLY * run.steps) == (part == "first 60 %")]
            published = sum(curve[k] for k in early) / len(early)
            rows.append({**row, "part": part, "published": published, **lengths.describe()})
    return rows


MODELS: Final = ("shapes-wan", "shapes-flux", "shapes-unet")
NOISE_SCALE = Study(
    title="A factor on the noise of cached runs",
    run=study_scale,
    models=MODELS,
    columns={"name": "run", "factor": "factor", "work": "work", **TWO_AXES},
    section="name",
)
NOISE_LENGTH = Study(
    title="The length of cached noise against that without reuse, on the same latents",
    run=study_length,
    models=MODELS,
    columns={
        "name": "run",
        "part": "part",
        "length": "length",
        "factor": "best factor",
        "published": "b(t)",
        "error": "error",
        "left": "with the best factor",
    },
    section="name",
)
