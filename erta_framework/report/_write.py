"""Writes a comparison: GIFs, contact sheet, schedule plot, JSON and the HTML report."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from erta_framework.budgets import StepSchedule
from erta_framework.environment import machine, versions
from erta_framework.plugins import Engine
from erta_framework.report._comparison import Comparison
from erta_framework.report._html import Page, count, render
from erta_framework.report._pictures import (
    SchedulePlot,
    Sheet,
    animated_sheet,
    contact_sheet,
    schedule_plot,
    write_gif,
)


@dataclass(frozen=True, slots=True)
class Report:
    """The files of a report."""

    html: Path
    contact_sheet: Path
    animation: Path
    schedule: Path
    results: Path
    gifs: tuple[Path, ...]


def write_report(
    comparison: Comparison,
    folder: str | Path,
    *,
    title: str,
    setting: Mapping[str, str],
    forecast: StepSchedule | None = None,
    device: torch.device | None = None,
) -> Report:
    """Write everything there is to see of a comparison into one folder.

    `report.html` needs none of the other files.

    Args:
        comparison: What was measured.
        folder: Where to; made if need be, files of an earlier report are replaced.
        title: Heading of the report.
        setting: Facts of the run that the report states.
        forecast: What the subject's policies predicted, for the schedule plot.
        device: Where it ran.

    Raises:
        MissingExtraError: Pillow or matplotlib is not installed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sheet = sheet_of(comparison)
    still = contact_sheet(sheet, folder / "contact-sheet.png")
    moving = animated_sheet(sheet, folder / "comparison.gif")
    shown = plot_of(comparison, forecast)
    schedule = schedule_plot(shown, folder / "schedule.png")
    environment = {
        **machine(device),
        **versions(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    subject = comparison.methods[comparison.subject]
    gifs = write_gifs(comparison, folder / "gifs")
    with tempfile.TemporaryDirectory() as scratch:
        # the page enlarges pixels by itself, so its videos stay at their own size
        small = [
            [write_gif(s, Path(scratch) / f"{k}-{n}", scale=1) for n, s in enumerate(samples)]
            for k, samples in enumerate(comparison.samples)
        ]
        page = Page(
            title=title,
            setting={**setting, "seeds": seeds_of(comparison)},
            environment=environment,
            explanation=Engine(subject.policies).explain(),
            videos=small,
            plot=schedule,
            plot_dark=schedule_plot(shown, Path(scratch) / "dark.png", dark=True),
            plot_note=plot_note(shown, comparison.recorded),
        )
        html = folder / "report.html"
        html.write_text(render(comparison, page), encoding="utf-8")
    results = folder / "results.json"
    results.write_text(json.dumps(results_of(comparison, device), indent=2) + "\n", "utf-8")
    return Report(html, still, moving, schedule, results, gifs)


def sheet_of(comparison: Comparison) -> Sheet:
    """The comparison as a labelled grid."""
    cells, captions = {}, {}
    for row, samples in zip(comparison.rows, comparison.samples, strict=True):
        label = f"{row.name}\n{count(row.calls)} network calls"
        cells[label] = samples
        captions[label] = [f"{value:.1f} dB" for value in row.psnr]
    return Sheet(cells, comparison.prompts, captions)


def plot_of(comparison: Comparison, forecast: StepSchedule | None) -> SchedulePlot:
    """The subject's first batch as a schedule plot."""
    row = comparison.rows[comparison.subject]
    return SchedulePlot(
        title=f"{row.name}: {count(row.computed)} of {row.steps} steps run the network",
        computed=[step.computed for step in comparison.traces[comparison.subject].steps],
        errors=forecast.errors if forecast is not None else (),
        threshold=forecast.threshold if forecast is not None else None,
        distances=comparison.distances,
    )


def plot_note(plot: SchedulePlot, recorded: int) -> str:
    """What the plot shows, in a sentence or two."""
    parts = ["Blue steps ran the network, orange steps reused what it said earlier."]
    if plot.errors:
        parts.append(
            "The height is the relative error that calibration predicts for reusing at this step; "
            "below the threshold a step is reused."
        )
    if plot.distances:
        parts.append(
            "The lower panel was measured: the relative L1 distance of the latents from those of "
            f"the full run, over {recorded} of the prompts."
        )
    return " ".join(parts)


def seeds_of(comparison: Comparison) -> str:
    """First and last seed."""
    return f"{comparison.seed} to {comparison.seed + len(comparison.prompts) - 1}, one a prompt"


def write_gifs(comparison: Comparison, folder: Path) -> tuple[Path, ...]:
    """One GIF a sample: `<prompt number>-<method>.gif`."""
    return tuple(
        write_gif(sample, folder / f"{number:02d}-{slug(method.name)}")
        for method, samples in zip(comparison.methods, comparison.samples, strict=True)
        for number, sample in enumerate(samples)
    )


def results_of(comparison: Comparison, device: torch.device | None) -> dict[str, object]:
    """The measured rows for scripts."""
    common = {"seeds": seeds_of(comparison), "prompts": len(comparison.prompts)}
    return {
        "command": "erta demo",
        "versions": versions(),
        "machine": machine(device),
        "rows": [{**row.record(), **common} for row in comparison.rows],
    }


def slug(text: str) -> str:
    """A text as part of a file name."""
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())
