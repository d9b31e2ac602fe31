import socket

import pytest
import torch

from erta_integrations.shapes_wan import load
from erta_integrations.shapes_wan.accuracy import accuracy, parse_prompt, read
from erta_integrations.shapes_wan.data import (
    COLORS,
    DIRECTIONS,
    FRAMES,
    MAX_WORDS,
    SHAPES,
    SIZE,
    VOCABULARY,
    Scene,
    all_prompts,
    random_scenes,
    render,
    tokenize,
)
from erta_integrations.shapes_wan.model import ShapesWan, load_model, save_weights

WORDS = {"color": COLORS, "shape": SHAPES, "direction": DIRECTIONS}
"""What is read from a video, and what it may be."""


def scenes(count: int, seed: int = 0) -> Scene:
    return random_scenes(count, torch.Generator().manual_seed(seed))


def still(*, radius: float = 3.5, speed: float = 1.5, tone: float = -0.6) -> Scene:
    """Every prompt once, in the middle of a plain background."""
    words = [parse_prompt(prompt) for prompt in all_prompts()]
    count = len(words)
    return Scene(
        color=torch.tensor([list(COLORS).index(w[0]) for w in words]),
        shape=torch.tensor([SHAPES.index(w[1]) for w in words]),
        direction=torch.tensor([list(DIRECTIONS).index(w[2]) for w in words]),
        radius=torch.full((count,), radius),
        center=torch.full((count, 2), SIZE / 2),
        speed=torch.full((count,), speed),
        background=torch.full((count, 2, 3), tone),
    )


# ------------------------------------------------------------------- rendering
def test_the_shape_stays_in_the_frame_for_every_random_scene():
    drawn = scenes(5000)
    unit = torch.tensor(list(DIRECTIONS.values()))[drawn.direction]
    for frame in range(FRAMES):
        when = frame - (FRAMES - 1) / 2
        center = drawn.center + when * unit * drawn.speed[:, None]
        assert (center - drawn.radius[:, None]).min() >= -1e-4
        assert (center + drawn.radius[:, None]).max() <= SIZE + 1e-4


def test_a_moved_shape_keeps_its_pixels():
    video = render(still(radius=3.0, speed=1.0))  # whole pixels a frame: frames are shifts
    right = all_prompts().index("a red circle moving right")
    for frame in range(1, FRAMES):
        moved = video[right, :, 0].roll(frame, dims=2)
        assert torch.allclose(video[right, :, frame], moved, atol=1e-6)


def test_rendered_videos_follow_from_the_seed():
    assert torch.equal(render(scenes(8, 3)), render(scenes(8, 3)))
    assert not torch.equal(render(scenes(8, 3)), render(scenes(8, 4)))
    video = render(scenes(200))
    assert video.shape == (200, 3, FRAMES, SIZE, SIZE)
    assert video.abs().max() <= 1


def test_prompts_round_trip_through_their_words():
    prompts = all_prompts()
    assert len(set(prompts)) == len(prompts) == 72
    tokens = tokenize(prompts)
    assert tokens.shape == (72, MAX_WORDS)
    for prompt, row in zip(prompts, tokens.tolist(), strict=True):
        assert " ".join(VOCABULARY[k] for k in row if k) == prompt
    assert tokenize([""]).count_nonzero() == 0
    assert torch.equal(tokenize(["A Red circle moving LEFT"]), tokenize([prompts[0]]))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a pink circle moving left", r"unknown words \['pink'\].*'a red circle moving left'"),
        ("a a a a a a red", "more than 6 words"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused(prompt, message):
    with pytest.raises(ValueError, match=message):
        tokenize([prompt])


# ------------------------------------------------------------------ the measures
def test_the_measures_read_rendered_videos():
    drawn = scenes(400, seed=5)
    found = accuracy(render(drawn), drawn.prompts())
    for name in WORDS:
        assert found.share(name) >= 0.995, found.wrong


def test_every_word_is_read_in_every_place():
    for tone in (-1.0, -0.35):
        found = accuracy(render(still(tone=tone)), all_prompts())
        assert found.wrong == ()


def test_the_measures_bear_noise():
    drawn = scenes(200, seed=6)
    noise = 0.15 * torch.randn(
        200, 3, FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(1)
    )
    found = accuracy(render(drawn) + noise, drawn.prompts())
    assert min(found.share(name) for name in WORDS) >= 0.98


def test_shuffled_prompts_score_near_chance():
    drawn = scenes(1000, seed=7)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).tolist()
    prompts = drawn.prompts()
    found = accuracy(render(drawn), [prompts[k] for k in order])
    for name, known in WORDS.items():
        assert found.share(name) == pytest.approx(1 / len(known), abs=0.05)


def test_faults_are_counted_one_by_one():
    drawn = scenes(4, seed=8)
    prompts = drawn.prompts()
    color, shape, direction = parse_prompt(prompts[1])
    other = next(c for c in COLORS if c != color)
    asked = [prompts[0], f"a {other} {shape} moving {direction}", *prompts[2:]]
    found = accuracy(render(drawn), asked)
    assert (found.samples, found.color, found.shape, found.direction) == (4, 3, 4, 4)
    assert found.wrong == ((asked[1], prompts[1]),)


def test_opposite_motion_is_wrong():
    video = render(still())
    found = accuracy(video.flip(2), all_prompts())
    assert (found.color, found.shape, found.direction) == (72, 72, 0)


def test_frozen_and_empty_videos_show_nothing():
    video = render(scenes(20))
    frozen = video[:, :, :1].expand(-1, -1, FRAMES, -1, -1)
    assert set(read(frozen).direction) == {"none"}
    empty = torch.full((3, 3, FRAMES, SIZE, SIZE), -0.6)
    assert read(empty).prompts() == ["a none none moving none"] * 3
    noise = 0.1 * torch.randn(3, 3, FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    assert read(empty + noise).color == ("none",) * 3


def test_wrong_input_of_the_measures_is_refused():
    video = render(scenes(2))
    with pytest.raises(ValueError, match="1 prompts for 2 videos"):
        accuracy(video, ["a red circle moving left"])
    with pytest.raises(ValueError, match="'red circle'"):
        accuracy(video, ["red circle", "a red circle moving left"])


# ---------------------------------------------------------------------- the model
def test_loading_needs_no_network(monkeypatch):
    def refused(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refused)
    monkeypatch.setattr(socket, "create_connection", refused)
    model = load()
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert 1e6 < sum(p.numel() for p in model.parameters()) < 6e6


def test_shapes_and_the_empty_prompt():
    model = load()
    assert model.latent_shape == (3, FRAMES, SIZE, SIZE)
    embeds = model.encode(["a red circle moving left", ""])
    assert embeds.shape == (2, MAX_WORDS, 64)
    assert embeds[0, :5].abs().sum(dim=1).min() > 0
    assert embeds[1].count_nonzero() == 0
    x = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    velocity = model(x.expand(2, -1, -1, -1, -1), torch.full((2,), 900.0), embeds)
    assert velocity.shape == (2, 3, FRAMES, SIZE, SIZE)
    assert velocity.isfinite().all()
    assert (velocity[0] - velocity[1]).abs().max() > 0.01


def test_fingerprint_is_stable_and_tells_weights_apart(tmp_path):
    first, second = load().fingerprint(), load().fingerprint()
    assert first == second
    torch.manual_seed(0)
    save_weights(ShapesWan(), tmp_path / "other.safetensors", {})
    other = load_model(tmp_path / "other.safetensors").fingerprint()
    assert {key for key in first if first[key] != other[key]} == {"weights"}


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights.*shapes_wan\.train"):
        load_model(tmp_path / "nothing.safetensors")


def test_demo_prompts_share_none():
    calibration, held_out = ShapesWan().demo_prompts()
    assert (len(calibration), len(held_out)) == (24, 48)
    assert sorted([*calibration, *held_out]) == sorted(all_prompts())
