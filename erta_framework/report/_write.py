"""`write_report`: GIFs, contact sheet, schedule plot, JSON and the HTML page of a comparison."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from erta_framework.budgets import StepSchedule
from erta_framework.environment import collect_versions, describe_machine
from erta_framework.plugins import Engine
from erta_framework.report._comparison import Comparison
from erta_framework.report._contact_sheet import (
    ContactSheet,
    write_contact_animation,
    write_contact_sheet,
)
from erta_framework.report._page import Page, render_comparison
from erta_framework.report._pictures import write_gif, write_png
from erta_framework.report._schedule_plot import SchedulePlot, write_schedule_plot
from erta_framework.report._templates import format_count

SIDE = 128
"""Least side of the pictures beside the page, in pixels."""


@dataclass(frozen=True, slots=True)
class Report:
    """The files of a report.

    Attributes:
        html: The page; it needs none of the other files.
        contact_sheet: All samples as a still picture.
        contact_sheet_dark: The same for a page in dark mode.
        animation: All samples as one GIF.
        schedule: Which steps ran the network.
        results: The measured rows as JSON.
        gifs: Every sample as a GIF, `<prompt number>-<method>.gif`; an image as a PNG.
    """

    html: Path
    contact_sheet: Path
    contact_sheet_dark: Path
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
    command: str | None = None,
) -> Report:
    """Write a comparison into a folder: one HTML page, its pictures, and the numbers as JSON.

    Args:
        comparison: What was measured.
        folder: Where to. It is made if need be; files of an earlier report are replaced.
        title: Heading of the page.
        setting: Facts of the run that the page states.
        forecast: What the subject's policies predicted, for the schedule plot.
        device: Where it ran; by default the GPU if torch sees one.
        command: The command that made it, for the JSON file.

    Raises:
        MissingExtraError: matplotlib, Pillow or Jinja2 is not installed.

    Example:
        >>> comparison = compare(model, methods, prompts)  # doctest: +SKIP
        >>> write_report(comparison, "runs/mine", title="Mine", setting={})  # doctest: +SKIP
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sheet = _make_sheet(comparison)
    plot = _make_plot(comparison, forecast)
    schedule = write_schedule_plot(plot, folder / "schedule.png")
    seeds = f"{comparison.seed} to {comparison.seed + len(comparison.prompts) - 1}, one per prompt"
    machine, versions = describe_machine(device), collect_versions()
    environment = {key: str(value) for key, value in {**machine, **versions}.items() if value}
    with tempfile.TemporaryDirectory() as scratch:
        # the page enlarges pixels by itself, so its videos stay at their own size
        small = [
            [_write_picture(s, Path(scratch) / f"{k}-{n}") for n, s in enumerate(samples)]
            for k, samples in enumerate(comparison.samples)
        ]
        page = Page(
            title=title,
            setting={**setting, "seeds": seeds},
            environment={
                **environment,
                "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            },
            explanation=Engine(comparison.methods[comparison.subject].policies).explain(),
            videos=small,
            plot=schedule,
            plot_dark=write_schedule_plot(plot, Path(scratch) / "dark.png", dark=True),
            plot_note=_describe_plot(plot, comparison.recorded),
        )
        html = folder / "report.html"
        html.write_text(render_comparison(comparison, page), encoding="utf-8")
    common = {"seeds": seeds, "prompts": len(comparison.prompts)}
    record = {
        "command": command,
        "versions": versions,
        "machine": machine,
        "clock": comparison.clock,
        "exact": comparison.exact_note or None,
        "rows": [{**row.as_record(), **common} for row in comparison.rows],
    }
    results = folder / "results.json"
    results.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return Report(
        html=html,
        contact_sheet=write_contact_sheet(sheet, folder / "contact-sheet.png"),
        contact_sheet_dark=write_contact_sheet(sheet, folder / "contact-sheet-dark.png", dark=True),
        animation=write_contact_animation(sheet, folder / "comparison.gif"),
        schedule=schedule,
        results=results,
        gifs=_write_gifs(comparison, folder / "gifs"),
    )


def _make_sheet(comparison: Comparison) -> ContactSheet:
    columns, captions = {}, {}
    for row, samples in zip(comparison.rows, comparison.samples, strict=True):
        label = f"{row.name}\n{format_count(row.calls)} network calls"
        columns[label] = samples
        captions[label] = [f"{value:.1f} dB" for value in row.psnr]
    return ContactSheet(columns, comparison.prompts, captions)


def _make_plot(comparison: Comparison, forecast: StepSchedule | None) -> SchedulePlot:
    """The first batch of the subject."""
    row = comparison.rows[comparison.subject]
    return SchedulePlot(
        title=f"{row.name}: {format_count(row.computed)} of {row.steps} steps run the network",
        computed=[step.computed for step in comparison.traces[comparison.subject].steps],
        errors=forecast.errors if forecast is not None else (),
        threshold=forecast.threshold if forecast is not None else None,
        distances=comparison.distances,
    )


def _describe_plot(plot: SchedulePlot, recorded: int) -> str:
    parts = ["Blue steps ran the network; orange steps reused an earlier result."]
    if plot.errors:
        parts.append(
            "The height of a bar is the relative error that calibration predicts for reusing at "
            "this step."
        )
    if plot.threshold is not None:
        parts.append("A step below the threshold is reused.")
    if plot.distances:
        parts.append(
            "The lower panel is measured: the relative L1 distance of the latents from those of "
            f"the full run, averaged over {recorded} of the prompts."
        )
    return " ".join(parts)


def _write_picture(sample: Tensor, path: Path, side: int = 1) -> Path:
    """A video as GIF, an image as PNG; small ones are enlarged by whole factors up to `side`."""
    scale = max(1, side // sample.shape[-1])
    write = write_png if sample.ndim == 3 else write_gif
    return write(sample, path, scale=scale)


def _write_gifs(comparison: Comparison, folder: Path) -> tuple[Path, ...]:
    return tuple(
        _write_picture(sample, folder / f"{number:02d}-{_slugify(method.name)}", SIDE)
        for method, samples in zip(comparison.methods, comparison.samples, strict=True)
        for number, sample in enumerate(samples)
    )


def _slugify(text: str) -> str:
    """A text as part of a file name."""
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())
