"""All contenders at equal numbers of network calls, through a model's unmodified pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from rich.console import Console
from torch import Tensor

from erta_bench.comparison.contender import SOLVED, Contender
from erta_bench.comparison.contenders import CONTENDERS, UNLISTED
from erta_bench.comparison.standings import NEAR
from erta_bench.comparison.track import BRANCHES, Ran, Ready, Track
from erta_bench.core.ablation import SEEDS_APART, Overall, Setting, checked, shared_settings
from erta_bench.core.outcome import Outcome, average, finite, record
from erta_bench.core.report import Bench, Row, Value
from erta_bench.other_caches import RIVALS
from erta_bench.pipelines.families import rival_versions
from erta_framework import CFG
from erta_framework.compatibility import Role, role_of
from erta_framework.environment import collect_versions
from erta_framework.errors import CapabilityError, ErtaError, InputError, suggestion
from erta_framework.metrics import psnr
from erta_framework.optional_dependencies import MissingExtraError
from erta_framework.plugins import Catalogue, flatten, policies
from erta_framework.sampling import Samples
from erta_integrations.diffusers.bundled import PipelineModel, pipeline_model

COLUMNS = {
    "budget": "calls",
    "name": "policies",
    "status": "status",
    "calls": "made",
    "processor_speedup": "speed",
    "processor_efficiency": "eff.",
    "psnr_mean": "PSNR",
    "psnr_std": "std",
    "ssim_mean": "SSIM",
}
"""The other keys are in the JSON and in the report."""
LONGEST, START = 280, 60
"""Characters of a reason that are kept, and how many of them from its beginning."""
TIMES = (
    "seconds",
    "speedup",
    "efficiency",
    "processor_seconds",
    "processor_speedup",
    "processor_efficiency",
)
NOTHING: Mapping[str, Value] = {"gain_mean": None, "gain_std": None}


@dataclass(slots=True)
class Lane:
    """One row: a contender at one number of calls, and what it measured.

    Attributes:
        contender: The contender.
        budget: Network calls of each branch that were asked for.
        ready: It with everything filled in; None where that was not possible.
        outcome: Times and qualities.
        fine: PSNR of each prompt against the fine solution.
        right: Share of samples that show what their prompt says, word by word, by seed set.
        elements: What the layers computed, over all runs.
        bytes_held: Bytes a sample held between steps.
        status, detail: How it went.
    """

    contender: Contender
    budget: int
    ready: Ready | None = None
    outcome: Outcome = field(default_factory=Outcome)
    fine: list[float] = field(default_factory=list)
    right: list[Mapping[str, float]] = field(default_factory=list)
    elements: int = 0
    bytes_held: int | None = None
    status: str = "measured"
    detail: str = ""

    def add(self, ran: Ran, reference: Ran, exact: Tensor, through: PipelineModel) -> None:
        """Measure one run, which may hold the first samples only, against the full one."""
        count = len(ran.samples.samples)
        first = replace(reference.samples, samples=reference.samples.samples[:count])
        self.outcome.add(ran.samples, first, ran.processor, BRANCHES, ran.calls)
        self.elements += ran.elements
        self.fine += psnr(ran.samples.samples, exact[:count]).tolist()
        self.right.append(through.shown(ran.samples.samples, ran.samples.prompts))

    def shown(self) -> dict[str, Value]:
        """Share of samples that show what their prompt says: all words, and each."""
        found = {word: average([each[word] for each in self.right]) for word in self.right[0]}
        return {"right": found.pop("all"), **{f"right_{k}": v for k, v in found.items()}}

    def failed(self, error: Exception) -> None:
        """Note why there is nothing to measure."""
        kinds: dict[type[Exception], str] = {
            MissingExtraError: "not installed",
            CapabilityError: "refused",
        }
        if self.contender.rival:
            kinds[ValueError] = "refused"  # as cache-dit says which pipelines it does not know
        self.status = next((s for kind, s in kinds.items() if isinstance(error, kind)), "error")
        self.detail = reason(error)


def reason(error: Exception) -> str:
    """Type and first line of an error, without the middle of one that begins with long settings.

    Example:
        >>> text = reason(ValueError("a" * 500 + " requires velocity"))
        >>> len(text), text[:13], text[-17:]
        (280, 'ValueError: a', 'requires velocity')
    """
    text = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    text = text.removesuffix(": ")
    excess = len(text) - LONGEST
    if excess <= 0:
        return text
    return f"{text[:START]}...{text[START + excess + 3 :]}"


def policies_bench(
    setting: Setting,
    *,
    calls: Sequence[int] = (25, 17),
    scheduler: str = "",
    seeds: int = 3,
    seed: int = 0,
    rows: Sequence[str] = (),
    console: Console | None = None,
    command: str = "policies",
) -> Bench:
    """Measure every contender at every number of calls.

    Args:
        setting: Model, prompts and what else all rows share; the guidance is a `CFG`.
        calls: Network calls of each branch.
        scheduler: Scheduler of all but some plain rows; empty for the model's default.
        seeds: How often everything is repeated with other noise; calibrated and solved once.
        seed: First seed.
        rows: Names of contenders, or of policies in them; empty means all.
        console: Where to show a progress bar; None shows none.
        command: Named in the result.

    Raises:
        InputError: What cannot be measured; see `erta_bench.core.ablation.checked`. The
            model says no pipeline, or has no such scheduler.
    """
    bench = compare(
        setting,
        chosen(rows, CONTENDERS),
        calls=calls,
        scheduler=scheduler,
        seeds=seeds,
        seed=seed,
        console=console,
        command=command,
        columns=COLUMNS,
    )
    return replace(bench, rows=[*bench.rows, *([] if rows else missing_rows(policies()))])


def compare(
    setting: Setting,
    contenders: Sequence[Contender],
    *,
    calls: Sequence[int],
    scheduler: str,
    seeds: int,
    seed: int,
    console: Console | None,
    command: str,
    columns: Mapping[str, str],
    solving: int = 2,
) -> Bench:
    """Measure these contenders at every number of calls; the arguments are `policies_bench`'s.

    Args:
        setting: As there.
        contenders: The rows; plain ones whose scheduler the model does not have are left out.
        calls: As there.
        scheduler: As there.
        seeds: As there.
        seed: As there.
        console: As there.
        command: As there.
        columns: Keys that the table shows, with their headings.
        solving: Calibration prompts that a search for a setting runs.

    Raises:
        InputError: What cannot be measured.
    """
    checked(setting, calls, seeds)
    track = track_of(setting, scheduler, solving)
    budgets = tuple(dict.fromkeys(calls))
    contenders = [each for each in contenders if runs_in(each, track)]
    lanes = [Lane(each, budget) for budget in budgets for each in contenders]
    batches = -(-len(setting.held_out) // setting.batch_size)
    work = seeds * batches * (2 * setting.steps + sum(lane.budget for lane in lanes))
    full = Lane(Contender(name="full", group="plain"), setting.steps)
    with Overall(work, console) as bar:
        for lane in lanes:
            bar.title(f"{lane.budget} calls, solving: {lane.contender.name}")
            prepare(track, lane)
        for number in range(seeds):
            first = seed + number * SEEDS_APART
            # another order each time, so that no row always runs on a warmer or busier machine
            turn = lanes[:: -1 if number % 2 else 1]
            run_set(track, setting, bar, first, turn, full)
    found = [row_of_full(full, setting.steps)]
    found += [row_of(lane, full, track) for lane in lanes]
    facts = {
        **shared_settings(setting, seed, list(track.profiles.values())[:1]),
        "model": track.through.name,
        "pipeline": track.through.pipeline,
        "scheduler": track.scheduler,
        "solving_samples": track.solving,
    }
    return Bench(
        command,
        found,
        columns,
        facts,
        section="budget",
        versions={**collect_versions(), **rival_versions()},
    )


def runs_in(contender: Contender, track: Track) -> bool:
    """Whether a model has the scheduler of a plain row, and no other row is the same.

    A plain row of the full run's scheduler is there already, under the name of the same solver.
    """
    if contender.on is not None or not contender.scheduler:
        return True
    return contender.scheduler in track.through.schedulers and (
        contender.scheduler != track.scheduler
    )


def track_of(setting: Setting, scheduler: str = "", solving: int = 2) -> Track:
    """What all rows of a setting share.

    Raises:
        InputError: The model says no pipeline or has no such scheduler, or the guidance is no CFG.
    """
    through = pipeline_model(setting.model)
    if not isinstance(setting.guidance, CFG):
        raise InputError(
            f"guidance is {setting.guidance!r}: a pipeline has classifier-free guidance; "
            "give guidance=CFG(...)"
        )
    through.make_scheduler(scheduler or None)
    return Track(
        setting.model,  # type: ignore[arg-type]
        setting.calibration,
        solving=solving,
        steps=setting.steps,
        scheduler=scheduler or through.default,
        guidance_scale=setting.guidance.scale,
        batch_size=setting.batch_size,
    )


def chosen(rows: Sequence[str], contenders: Sequence[Contender]) -> list[Contender]:
    """The contenders of these names, or of policies with these names.

    Raises:
        InputError: Nothing has such a name.
    """
    names = [contender.name for contender in contenders]
    parts = sorted({name for contender in contenders for name in contender.names})
    for row in rows:
        if row not in (*names, *parts):
            raise InputError(f"no row and no policy {row!r}; {suggestion(row, [*names, *parts])}")
    return [c for c in contenders if not rows or c.name in rows or c.names & set(rows)]


def prepare(track: Track, lane: Lane) -> None:
    """Calibrate, solve and weigh; what cannot be done is the row's status."""
    rival = lane.contender.rival
    try:
        if rival and RIVALS[rival].absence:
            raise MissingExtraError(RIVALS[rival].absence)
        if lane.contender.oracle:  # made ready for each seed set, on its samples
            lane.ready = Ready(lane.contender, lane.budget, None)
            return
        lane.ready = track.ready(lane.contender, lane.budget)
        lane.bytes_held = track.bytes_held(lane.ready)
    except Exception as error:  # whatever another project's code raises is a row
        lane.ready = None
        lane.failed(error)


def run_set(
    track: Track, setting: Setting, bar: Overall, seed: int, lanes: Iterable[Lane], full: Lane
) -> None:
    """Run everything once, from noise of this seed on."""
    plain = Ready(full.contender, setting.steps, None)
    bar.title("full")
    reference = track.run(plain, setting.held_out, seed, [bar])
    bar.title("fine solution")
    exact = fine_solution(track, setting.held_out, seed).samples
    full.add(reference, reference, exact, track.through)
    for lane in lanes:
        if lane.ready is None:
            continue
        bar.title(f"{lane.budget} calls: {lane.contender.name}")
        try:
            prompts = setting.held_out
            if lane.contender.oracle:
                prompts = prompts[: setting.batch_size]
                lane.ready = track.oracle(lane.contender, lane.budget, prompts, seed)
            ran = track.run(lane.ready, prompts, seed, [bar])
        except Exception as error:  # whatever another project's code raises is a row
            lane.ready = None
            lane.failed(error)
            continue
        lane.add(ran, reference, exact, track.through)
    bar.title("full, again")
    # every speed-up is relative to it, and the machine may have slowed since
    again = track.run(plain, setting.held_out, seed, [bar])
    full.outcome.time(again.samples, again.processor)


def fine_solution(track: Track, prompts: Sequence[str], seed: int) -> Samples:
    """Second-order steps on a grid twice as fine: nearly the exact solution."""
    sampler = track.through.fine(2 * track.steps, track.guidance_scale, track.batch_size)
    return sampler.sample(track.model, prompts, seed=seed)


# ------------------------------------------------------------------------------ the rows
def row_of_full(full: Lane, steps: int) -> Row:
    """The full run, which all others are compared with."""
    facts: dict[str, Value] = {
        "group": "plain",
        "kind": "full",
        "budget": None,
        "steps": steps,
        "status": "measured",
        "psnr_fine_mean": average(full.fine),
        **full.shown(),
        "work": 1.0,
        "efficiency": 1.0,
        "processor_efficiency": 1.0,
        "bytes_held": 0,
        "calibration_calls": 0,
    }
    return without(record("full", full.outcome, full.outcome, None, facts))


def row_of(lane: Lane, full: Lane, track: Track) -> Row:
    """The row of a contender at one number of calls; without numbers where it did not run."""
    contender = lane.contender
    facts: dict[str, Value] = {
        "group": contender.group,
        "kind": contender.kind,
        "budget": lane.budget,
        "steps": contender.steps(lane.budget, track.steps),
        "status": lane.status,
        "detail": lane.detail,
        "equal": "work" if contender.parts else "calls",
        "seam": "" if contender.group in ("plain", "other") else contender.seam,
        "setting": "",
    }
    if lane.ready is None or not lane.outcome.psnr:
        return {"name": contender.name, **facts}
    found = record(contender.name, lane.outcome, full.outcome, None, facts)
    made = average(lane.outcome.calls)
    saved = track.steps / made
    off = abs(made - lane.budget) > NEAR
    value = lane.ready.value
    means = torch.stack([quality.mean() for quality in lane.outcome.psnr])
    row: dict[str, Value] = {
        **found,
        "status": "off budget" if off else "measured",
        "detail": off_budget(contender, made, track.steps) if off else "",
        "setting": "" if value is None else f"{solved_name(contender)}={value:.4g}",
        "efficiency": full_ratio(found["speedup"], saved),
        "processor_efficiency": full_ratio(found["processor_speedup"], saved),
        "work": lane.elements / full.elements * len(full.fine) / len(lane.fine),
        "psnr_sets_std": finite(means.std(correction=0)),
        "psnr_fine_mean": average(lane.fine),
        **lane.shown(),
        "bytes_held": lane.bytes_held,
        "calibration_calls": track.calibration_calls(lane.ready),
        "solving_calls": track.solving_calls.get(contender.name, 0.0),
        "policies": "; ".join(repr(part) for part in flatten(lane.ready.policies)),
    }
    if contender.oracle:  # runs on fewer samples, so its time compares with nothing
        row |= dict.fromkeys((*TIMES, "calibration_calls"), None)
    return without(row)


def full_ratio(speedup: Value, saved: float) -> float:
    """Efficiency: the measured speed-up over steps per call."""
    return float(speedup or 0.0) / saved


def off_budget(contender: Contender, made: float, steps: int) -> str:
    """Why a row has another number of calls."""
    if contender.parts:
        return "skips parts of blocks, all of which run; see work"
    if made == steps:
        return "it skipped nothing, whatever the setting"
    if contender.search is not None and contender.search.whole:
        return f"no whole number is nearer; {made:.1f} calls were made"
    return f"{made:.1f} calls were made on the measured prompts, or nothing nearer can be reached"


def solved_name(contender: Contender) -> str:
    """Name of the setting that was solved for."""
    for spec in (*contender.policies, {"": contender.options}):
        for options in {} if isinstance(spec, str) else spec.values():
            for name, value in options.items():
                if value is SOLVED:
                    return str(name)
    return ""


def without(row: Row) -> Row:
    """A row without the keys that only the ablation has."""
    return {key: value for key, value in row.items() if key not in NOTHING}


def missing_rows(catalogue: Catalogue) -> list[Row]:
    """Installed skip rules and recipes that no contender holds and `UNLISTED` does not name."""
    found: list[Row] = []
    listed = {name for contender in CONTENDERS for name in contender.names} | set(UNLISTED)
    for name in catalogue.names():
        if name in listed:
            continue
        try:
            role = role_of(catalogue.load(name))
        except ErtaError as error:
            found.append({"name": name, "group": "policy", "status": "error", "detail": str(error)})
            continue
        if role in (Role.WHEN, Role.RECIPE):
            said = "installed, but no row of this benchmark holds it"
            found.append({"name": name, "group": "policy", "status": "no row", "detail": said})
    return found
