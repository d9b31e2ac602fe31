import json
import socket
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from erta_bench.shapes_wan import check as check_module
from erta_bench.shapes_wan import train
from erta_bench.shapes_wan.check import TARGETS, chosen_prompts, main
from erta_bench.shapes_wan.training import Options
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
    for name in TARGETS:
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
    assert min(found.share(name) for name in TARGETS) >= 0.98


def test_shuffled_prompts_score_near_chance():
    drawn = scenes(1000, seed=7)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).tolist()
    prompts = drawn.prompts()
    found = accuracy(render(drawn), [prompts[k] for k in order])
    for name, chance in check_module.CHANCE.items():
        assert found.share(name) == pytest.approx(chance, abs=0.05)


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


# ------------------------------------------------------------------------ training
class Interrupted(Exception):
    pass


def trained(folder, steps: int = 4) -> dict[str, torch.Tensor]:
    options = Options(
        steps=steps, batch=2, folder=folder, output=folder / "weights.safetensors", save_every=2
    )
    train.train(options)
    return load_file(options.output)


def test_an_interrupted_run_continues_as_if_it_had_not_been(tmp_path, monkeypatch):
    straight = trained(tmp_path / "straight")
    loss = train.flow_matching_loss
    steps = []

    def interrupted(model, options, step, device):
        steps.append(step)
        if step == 3:
            raise Interrupted
        return loss(model, options, step, device)

    with monkeypatch.context() as patch:
        patch.setattr(train, "flow_matching_loss", interrupted)
        with pytest.raises(Interrupted):
            trained(tmp_path / "resumed")
    assert steps == [0, 1, 2, 3]
    assert not (tmp_path / "resumed" / "weights.safetensors").exists()
    checkpoints = [
        load_file(tmp_path / name / "checkpoint.safetensors") for name in ("straight", "resumed")
    ]
    assert any(not torch.equal(checkpoints[0][k], checkpoints[1][k]) for k in checkpoints[0])
    resumed = trained(tmp_path / "resumed")
    assert set(resumed) == set(straight)
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)
    first, second = (
        load_file(tmp_path / name / "checkpoint.safetensors") for name in ("straight", "resumed")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_batch_follows_from_seed_and_step():
    torch.manual_seed(0)
    model, device = ShapesWan(), torch.device("cpu")
    options = replace(train.DEFAULTS, batch=2)
    with torch.no_grad():
        losses = [train.flow_matching_loss(model, options, k, device).item() for k in (7, 7, 8)]
    assert losses[0] == losses[1] != losses[2]


# ----------------------------------------------------------------------- the check
def test_chosen_prompts_take_every_prompt_once_a_round():
    assert sorted(chosen_prompts(72)) == sorted(all_prompts())
    assert chosen_prompts(144) == chosen_prompts(72) * 2
    assert len(set(chosen_prompts(10))) == 10


def test_an_untrained_model_fails_the_check(tmp_path, capsys):
    torch.manual_seed(0)
    save_weights(ShapesWan(), tmp_path / "untrained.safetensors", {})
    path = tmp_path / "check.json"
    weights = str(tmp_path / "untrained.safetensors")
    options = ["--prompts", "6", "--steps", "2", "--weights", weights, "--json", str(path)]
    assert main(options) == 1
    rows = json.loads(path.read_text())["rows"]
    assert [row["name"] for row in rows] == ["color", "shape", "direction"]
    assert not all(row["passed"] for row in rows)
    assert all(row["rendered"] == 1.0 for row in rows)
    assert "asked for" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--prompts", "0"], "at least 1"), (["--weights", "nowhere"], "no file nowhere")],
)
def test_wrong_options_of_the_check_are_refused(options, message, capsys):
    with pytest.raises(SystemExit) as error:
        main(options)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_shipped_model_shows_what_it_is_asked_for(tmp_path):
    path = tmp_path / "check.json"
    status = main(["--prompts", "72", "--json", str(path)])
    rows = {row["name"]: row for row in json.loads(path.read_text())["rows"]}
    for name, target in {"color": 0.95, "shape": 0.80, "direction": 0.90}.items():
        assert rows[name]["accuracy"] >= target
        assert rows[name]["samples"] == 72
    assert status == 0
