from __future__ import annotations

import math

import pytest
import torch
from PIL import Image

from erta_framework.errors import InputError
from erta_framework.optional_dependencies import MissingExtraError
from erta_framework.report import COMPUTED, SchedulePlot, schedule_plot, write_gif
from erta_framework.report._pictures import (
    REUSED,
    Sheet,
    animated_sheet,
    contact_sheet,
    picked,
    to_frames,
)


def clip(frames: int = 5) -> torch.Tensor:
    """Each frame of its own colour, and a white pixel in the corner of each."""
    levels = torch.linspace(-1, 1, frames)
    video = levels.reshape(1, frames, 1, 1).repeat(3, 1, 6, 8)
    video[0] = 0.2
    video[:, :, 0, 0] = 1.0
    return video


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[k : k + 2], 16) for k in (1, 3, 5))


def test_frames_are_clipped_and_rounded():
    sample = torch.tensor([-9.0, -1.0, 0.0, 0.2, 1.0, 9.0]).reshape(1, 1, 6)
    frames = to_frames(sample)
    assert frames.shape == (1, 1, 6, 3)
    assert frames[0, 0, :, 2].tolist() == [0, 0, 128, 153, 255, 255]


def test_gif_keeps_frames_and_colours(tmp_path):
    path = write_gif(clip(), tmp_path / "deep" / "clip.v1", scale=3, fps=4)
    assert path == tmp_path / "deep" / "clip.v1.gif"
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.size) == (5, (24, 18))
        assert gif.info["loop"] == 0
        for k in range(5):
            gif.seek(k)
            assert gif.info["duration"] == 250
            frame = gif.convert("RGB")
            assert frame.getpixel((12, 9)) == tuple(to_frames(clip())[k, 3, 4].tolist())
            assert frame.getpixel((2, 2)) == (255, 255, 255)
            assert frame.getpixel((3, 3)) != (255, 255, 255)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (torch.zeros(2, 5, 4, 4), "1 or 3 channels"),
        (torch.zeros(4, 4), r"got \(4, 4\)"),
        (torch.full((3, 4, 4), torch.nan), "NaN"),
    ],
)
def test_no_picture(sample, message, tmp_path):
    with pytest.raises(InputError, match=message):
        write_gif(sample, tmp_path / "x")
    assert not (tmp_path / "x.gif").exists()


def sheet(columns: int = 2, rows: int = 3) -> Sheet:
    samples = torch.stack([clip()] * rows)
    cells = {f"method {k}\nnote": samples for k in range(columns)}
    return Sheet(
        cells, [f"a prompt of row {k}" for k in range(rows)], {"method 0\nnote": ["x"] * 3}
    )


def test_contact_sheet_grows_with_rows_and_columns(tmp_path):
    sizes = {}
    for shape in ((1, 3), (2, 3), (2, 6)):
        with Image.open(contact_sheet(sheet(*shape), tmp_path / "s.png")) as picture:
            sizes[shape] = picture.size
    strip = 3 * 8 * 11 + 2 * 2  # three frames of 8 pixels, 11 times as large, with gaps
    assert sizes[2, 3][0] - sizes[1, 3][0] == strip + 14
    assert sizes[2, 6][1] - sizes[2, 3][1] == 3 * (6 * 11 + 14 + 20)


def test_animated_sheet_moves(tmp_path):
    with Image.open(animated_sheet(sheet(), tmp_path / "s.gif", side=24)) as gif:
        assert gif.n_frames == 5
        pictures = []
        for k in range(5):
            gif.seek(k)
            pictures.append(gif.convert("RGB").tobytes())
    assert len(set(pictures)) == 5


def test_columns_and_rows_must_fit():
    with pytest.raises(InputError, match="column 'a' has 2 samples for 1 rows"):
        Sheet({"a": torch.zeros(2, 3, 4, 4)}, ["one"])


def test_picked_takes_first_and_last():
    assert picked(list("abcde"), 3) == ["a", "c", "e"]  # type: ignore[arg-type, comparison-overlap]
    assert picked(list("ab"), 3) == ["a", "b"]  # type: ignore[arg-type, comparison-overlap]
    assert picked(list("abc"), 1) == ["b"]  # type: ignore[arg-type, comparison-overlap]


def colours(path) -> set[tuple[int, ...]]:
    with Image.open(path) as picture:
        counted = picture.convert("RGB").getcolors(maxcolors=1 << 24) or []
    return {colour for count, colour in counted if count > 5000}


def test_schedule_plot_shows_both_kinds_of_step(tmp_path):
    plot = SchedulePlot("title", [True, False, True], [float("nan"), 0.1, 0.2], 0.15)
    path = schedule_plot(plot, tmp_path / "plot.png")
    assert {rgb(COMPUTED), rgb(REUSED), (255, 255, 255)} <= colours(path)
    every = schedule_plot(SchedulePlot("title", [True] * 3), tmp_path / "all.png")
    assert rgb(REUSED) not in colours(every)


@pytest.mark.parametrize("errors", [[math.nan] * 3, [math.nan, math.inf, 0.1], [0.0] * 3, []])
def test_schedule_plot_shows_steps_whose_error_is_unknown(errors, tmp_path):
    plot = SchedulePlot("title", [True, False, True], errors, 0.15)
    assert {rgb(COMPUTED), rgb(REUSED)} <= colours(schedule_plot(plot, tmp_path / "plot.png"))


def test_schedule_plot_has_a_panel_for_distances(tmp_path):
    one = SchedulePlot("title", [True, False])
    two = SchedulePlot("title", [True, False], distances={"uniform": [0.0, 0.1]})
    with (
        Image.open(schedule_plot(one, tmp_path / "1.png")) as low,
        Image.open(schedule_plot(two, tmp_path / "2.png", dark=True)) as high,
    ):
        assert high.height > 1.5 * low.height
        assert high.convert("RGB").getpixel((1, 1)) == rgb("#16191d")


def test_schedule_plot_has_a_row_for_each_sample(tmp_path):
    def picture(samples, **more):
        plot = SchedulePlot("title", [True, True], samples=samples, **more)
        return Image.open(schedule_plot(plot, tmp_path / "samples.png")).convert("RGB")

    differ = picture([[True, False], [True, True]])
    assert differ.height > 1.5 * picture([]).height
    lower = differ.crop((0, differ.height // 2, differ.width, differ.height))
    counts = {colour: count for count, colour in lower.getcolors(maxcolors=1 << 24)}
    assert 2.5 < counts[rgb(COMPUTED)] / counts[rgb(REUSED)] < 3.5
    three = picture([[True, False]], distances={"uniform": [0.0, 0.1]})
    assert three.height > 1.3 * differ.height


def test_schedule_plot_refuses_errors_of_another_length(tmp_path):
    with pytest.raises(InputError, match="2 errors for 3 steps"):
        schedule_plot(SchedulePlot("t", [True] * 3, [0.1, 0.2]), tmp_path / "x.png")


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("erta_framework.optional_dependencies.find_spec", lambda name: None)
    for draw in (
        lambda: write_gif(clip(), tmp_path / "x"),
        lambda: contact_sheet(sheet(), tmp_path / "x.png"),
        lambda: schedule_plot(SchedulePlot("t", [True]), tmp_path / "x.png"),
    ):
        with pytest.raises(MissingExtraError, match=r'pip install "erta-framework\[report\]"'):
            draw()
