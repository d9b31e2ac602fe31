from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from erta_framework.errors import InputError
from erta_framework.optional_dependencies import MissingExtraError
from erta_framework.report import (
    ContactSheet,
    SchedulePlot,
    write_contact_animation,
    write_contact_sheet,
    write_gif,
    write_png,
    write_schedule_plot,
)
from erta_framework.report._contact_sheet import pick_evenly
from erta_framework.report._figure import COMPUTED, LINES, REUSED
from erta_framework.report._pictures import to_frames


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


def sheet(columns: int = 2, rows: int = 3) -> ContactSheet:
    samples = torch.stack([clip()] * rows)
    cells = {f"method {k}\nnote": samples for k in range(columns)}
    return ContactSheet(
        cells, [f"a prompt of row {k}" for k in range(rows)], {"method 0\nnote": ["x"] * 3}
    )


def test_contact_sheet_grows_with_rows_and_columns(tmp_path):
    sizes = {}
    for shape in ((1, 3), (2, 3), (2, 6)):
        with Image.open(write_contact_sheet(sheet(*shape), tmp_path / "s.png")) as picture:
            sizes[shape] = picture.size
    strip = 3 * 8 * 11 + 2 * 2  # three frames of 8 pixels, 11 times as large, with gaps
    assert sizes[2, 3][0] - sizes[1, 3][0] == strip + 14
    assert sizes[2, 6][1] - sizes[2, 3][1] == 3 * (6 * 11 + 14 + 20)


def test_a_dark_sheet_has_light_text_on_a_dark_ground(tmp_path):
    paths = [write_contact_sheet(sheet(1, 1), tmp_path / f"{k}.png", dark=k) for k in (False, True)]
    pictures = [Image.open(path).convert("L") for path in paths]
    light, dark = (picture.getpixel((0, 0)) for picture in pictures)
    assert pictures[0].size == pictures[1].size
    assert (light, dark) == (255, 33)
    label = (0, 0, 100, pictures[0].height)
    assert pictures[0].crop(label).getextrema()[0] < 100
    assert pictures[1].crop(label).getextrema()[1] > 150


def test_contact_sheet_shows_the_frames_pixel_by_pixel(tmp_path):
    frames = to_frames(clip(), scale=11)
    shown = torch.cat([frames[0], frames[2], frames[4]], dim=1).numpy()
    with Image.open(write_contact_sheet(sheet(1, 1), tmp_path / "s.png")) as picture:
        page = np.asarray(picture.convert("RGB"))
    height, width = shown.shape[0], shown.shape[1] + 2 * 2
    columns = np.delete(np.arange(width), [88, 89, 178, 179])  # white gaps between the frames
    places = [
        (y, x)
        for y in range(page.shape[0] - height + 1)
        for x in range(page.shape[1] - width + 1)
        if (page[y, x + 1] == shown[0, 1]).all() and (page[y + 65, x + 87] == shown[65, 87]).all()
        if (page[y : y + height, x : x + width][:, columns] == shown).all()
    ]
    assert len(places) == 1


def test_a_dollar_sign_is_no_formula(tmp_path):
    samples = torch.stack([clip()])
    grid = ContactSheet({"$x_1$ and $": samples}, ["$5 for {a}$"], {"$x_1$ and $": ["$_$"]})
    assert write_contact_sheet(grid, tmp_path / "s.png").stat().st_size > 0
    plot = SchedulePlot("$x_{1$", [True, False])
    assert write_schedule_plot(plot, tmp_path / "plot.png").stat().st_size > 0


def test_png_keeps_the_pixels_of_an_image(tmp_path):
    image = clip()[:, 1]
    path = write_png(image, tmp_path / "new" / "image.v1", scale=2)
    assert path == tmp_path / "new" / "image.v1.png"
    with Image.open(path) as picture:
        assert np.array_equal(np.asarray(picture), to_frames(image, scale=2)[0].numpy())
    with pytest.raises(InputError, match="use write_gif for videos"):
        write_png(clip(), tmp_path / "video")


def test_animated_sheet_moves(tmp_path):
    with Image.open(write_contact_animation(sheet(), tmp_path / "s.gif", side=24)) as gif:
        assert gif.n_frames == 5
        pictures = []
        for k in range(5):
            gif.seek(k)
            pictures.append(gif.convert("RGB").tobytes())
    assert len(set(pictures)) == 5


def test_columns_and_rows_must_fit():
    with pytest.raises(InputError, match="column 'a' has 2 samples for 1 rows"):
        ContactSheet({"a": torch.zeros(2, 3, 4, 4)}, ["one"])


def test_items_picked_evenly_include_the_first_and_last():
    assert pick_evenly("abcde", 3) == ["a", "c", "e"]
    assert pick_evenly("ab", 3) == ["a", "b"]
    assert pick_evenly("abc", 1) == ["b"]


def colours(path) -> set[tuple[int, ...]]:
    with Image.open(path) as picture:
        counted = picture.convert("RGB").getcolors(maxcolors=1 << 24) or []
    return {colour for count, colour in counted if count > 5000}


def test_schedule_plot_shows_both_kinds_of_step(tmp_path):
    plot = SchedulePlot("title", [True, False, True], [float("nan"), 0.1, 0.2], 0.15)
    path = write_schedule_plot(plot, tmp_path / "plot.png")
    assert {rgb(COMPUTED), rgb(REUSED), (255, 255, 255)} <= colours(path)
    every = write_schedule_plot(SchedulePlot("title", [True] * 3), tmp_path / "all.png")
    assert rgb(REUSED) not in colours(every)


@pytest.mark.parametrize("errors", [[math.nan] * 3, [math.nan, math.inf, 0.1], [0.0] * 3, []])
def test_schedule_plot_shows_steps_whose_error_is_unknown(errors, tmp_path):
    plot = SchedulePlot("title", [True, False, True], errors, 0.15)
    assert {rgb(COMPUTED), rgb(REUSED)} <= colours(write_schedule_plot(plot, tmp_path / "plot.png"))


def test_schedule_plot_has_a_panel_for_distances(tmp_path):
    one = SchedulePlot("title", [True, False])
    two = SchedulePlot("title", [True, False], distances={"uniform": [0.0, 0.1]})
    with (
        Image.open(write_schedule_plot(one, tmp_path / "1.png")) as low,
        Image.open(write_schedule_plot(two, tmp_path / "2.png", dark=True)) as high,
    ):
        assert high.height > 1.5 * low.height
        assert high.convert("RGB").getpixel((1, 1)) == rgb("#16191d")


def test_schedule_plot_draws_every_distance(tmp_path):
    names = [f"method {k}" for k in range(len(LINES) + 2)]
    many = {name: [0.0, 1.0 + k] for k, name in enumerate(names)}
    plot = SchedulePlot("title", [True, False], distances=many)
    fewer = SchedulePlot("title", [True, False], distances=dict(list(many.items())[:-1]))
    drawn = write_schedule_plot(plot, tmp_path / "many.png").read_bytes()
    assert drawn != write_schedule_plot(fewer, tmp_path / "fewer.png").read_bytes()


def test_schedule_plot_has_a_row_for_each_sample(tmp_path):
    def picture(samples, **more):
        plot = SchedulePlot("title", [True, True], samples=samples, **more)
        return Image.open(write_schedule_plot(plot, tmp_path / "samples.png")).convert("RGB")

    differ = picture([[True, False], [True, True]])
    assert differ.height > 1.5 * picture([]).height
    lower = differ.crop((0, differ.height // 2, differ.width, differ.height))
    counts = {colour: count for count, colour in lower.getcolors(maxcolors=1 << 24)}
    assert 2.5 < counts[rgb(COMPUTED)] / counts[rgb(REUSED)] < 3.5
    three = picture([[True, False]], distances={"uniform": [0.0, 0.1]})
    assert three.height > 1.3 * differ.height


def test_schedule_plot_refuses_errors_of_another_length(tmp_path):
    with pytest.raises(InputError, match="2 errors for 3 steps"):
        write_schedule_plot(SchedulePlot("t", [True] * 3, [0.1, 0.2]), tmp_path / "x.png")


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("erta_framework.optional_dependencies.find_spec", lambda name: None)
    for draw in (
        lambda: write_gif(clip(), tmp_path / "x"),
        lambda: write_contact_sheet(sheet(), tmp_path / "x.png"),
        lambda: write_schedule_plot(SchedulePlot("t", [True]), tmp_path / "x.png"),
    ):
        with pytest.raises(MissingExtraError, match=r'pip install "erta-framework\[report\]"'):
            draw()
