"""shapes-flux and shapes-unet: data, measures, training, and the own loop beside the pipelines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from erta_bench.shapes_image import ShapesFlux, ShapesUNet, load_flux, load_model, load_unet
from erta_bench.shapes_image import train as train_module
from erta_bench.shapes_image._accuracy import measure_shares, read_prompts
from erta_bench.shapes_image._data import (
    MAX_WORDS,
    NEAREST,
    PLACES,
    VOCABULARY,
    all_prompts,
    random_stills,
    render_stills,
    tokenize,
)
from erta_bench.shapes_image._flux import make_image_ids, pack_patches, unpack_patches
from erta_bench.shapes_image._model import find_weights, save_weights
from erta_bench.shapes_image._unet import UNET
from erta_bench.training import train_model
from erta_framework import CFG, Sampler, attach
from erta_framework.errors import CapabilityError, InputError
from erta_framework.sampling import DDIM, FlowEuler
from erta_integrations.diffusers.bundled import pipeline, request, samples_of
from erta_integrations.shapes_wan.data import SIZE

MODELS = (ShapesFlux, ShapesUNet)
SOLVERS = {
    ShapesFlux: {"solver": FlowEuler(), "guidance": CFG(scale=3.0)},
    ShapesUNet: {"solver": DDIM(), "guidance": CFG(scale=3.0, batched=True)},
}


def stills(count: int, seed: int = 0):
    return random_stills(count, torch.Generator().manual_seed(seed))


def fresh(model):
    torch.manual_seed(0)
    return model().eval().requires_grad_(False)


# ---------------------------------------------------------------------------- data
def test_every_shape_lies_in_the_frame_off_the_middle_toward_its_place():
    drawn = stills(4000)
    center, radius = drawn.scene.center, drawn.scene.radius[:, None]
    assert (center - radius).min() >= 0
    assert (center + radius).max() <= SIZE
    unit = torch.tensor(list(PLACES.values()))[drawn.place]
    offset = center - SIZE / 2
    along = (offset * unit).sum(dim=1)
    across = (offset * (1 - unit.abs())).sum(dim=1).abs()
    assert along.min() >= NEAREST - 1e-4
    assert (across <= along).all()


def test_images_follow_from_the_seed():
    assert torch.equal(render_stills(stills(8, 3)), render_stills(stills(8, 3)))
    assert not torch.equal(render_stills(stills(8, 3)), render_stills(stills(8, 4)))
    image = render_stills(stills(100))
    assert image.shape == (100, 3, SIZE, SIZE)
    assert image.abs().max() <= 1


def test_prompts_round_trip_through_their_words():
    prompts = all_prompts()
    assert len(set(prompts)) == len(prompts) == 72
    tokens = tokenize(prompts)
    assert tokens.shape == (72, MAX_WORDS)
    for prompt, row in zip(prompts, tokens.tolist(), strict=True):
        assert " ".join(VOCABULARY[k] for k in row) == prompt
    assert tokenize([""]).count_nonzero() == 0


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a pink circle left", r"unknown words \['pink'\].*'a red circle left'"),
        ("a a a red circle", "more than 4 words"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused(prompt, message):
    with pytest.raises(InputError, match=message):
        tokenize([prompt])


def test_the_measures_read_rendered_images():
    drawn = stills(400, seed=5)
    image, prompts = render_stills(drawn), drawn.prompts()
    assert min(measure_shares(image, prompts).values()) >= 0.98
    shuffled = measure_shares(image, prompts[200:] + prompts[:200])
    assert shuffled["color"] < 0.35
    assert shuffled["place"] < 0.45
    assert read_prompts(torch.full((1, 3, SIZE, SIZE), -0.5)) == ["a none none none"]
    with pytest.raises(ValueError, match="2 prompts for 1 images"):
        measure_shares(image[:1], prompts[:2])


# -------------------------------------------------------------------------- models
def test_patches_are_those_of_the_pipeline():
    from diffusers import FluxPipeline

    x = torch.arange(2.0 * 3 * 6 * 4).reshape(2, 3, 6, 4)
    assert torch.equal(pack_patches(x), FluxPipeline._pack_latents(x, 2, 3, 6, 4))
    assert torch.equal(unpack_patches(pack_patches(x), 3, 2), x)
    ids = FluxPipeline._prepare_latent_image_ids(1, 3, 2, torch.device("cpu"), torch.float32)
    assert torch.equal(make_image_ids(3, 2), ids)


@pytest.mark.parametrize("model", MODELS)
def test_the_own_loop_gives_the_samples_of_the_pipeline(model):
    made = fresh(model)
    prompts = made.demo_prompts()[1][:2]
    pipe = pipeline(made)
    found = samples_of(made, pipe(**request(made, prompts, seeds=[4, 5], num_steps=5)))
    own = Sampler(num_steps=5, **SOLVERS[model]).sample(made, prompts, seed=4).samples
    # the schedulers hold their sigmas in float32
    assert found.shape == own.shape == (2, 3, SIZE, SIZE)
    assert torch.allclose(found, own, atol=1e-3)
    other = samples_of(made, pipe(**request(made, prompts, seeds=[6, 7], num_steps=5)))
    assert not torch.allclose(found, other, atol=0.1)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers
@pytest.mark.parametrize(
    ("model", "scheduler"),
    [
        (model, name)
        for model in MODELS
        for name in model.pipeline_model().schedulers
        if name != "heun"  # whose grid has two steps for each of the request's
    ],
)
def test_policies_run_through_the_unmodified_pipelines(model, scheduler):
    made = fresh(model)
    pipe = pipeline(made, scheduler)
    asked = dict(num_steps=4, seeds=[0])
    plain = samples_of(made, pipe(**request(made, ["a red circle left"], **asked)))
    with attach(pipe, []) as run:
        same = samples_of(made, pipe(**request(made, ["a red circle left"], **asked)))
    assert torch.equal(plain, same)
    each = run.traces[0].network_calls // 4
    with attach(pipe, "skip_policy", every=2) as run:
        samples_of(made, pipe(**request(made, ["a red circle left"], **asked)))
    assert run.traces[0].network_calls == 3 * each
    assert run.traces[0].computed_steps == (0, 2, 3)


def test_a_solver_of_the_other_kind_is_refused():
    with pytest.raises(CapabilityError, match=r"ShapesUNet predicts epsilon, FlowEuler.*DDIM\(\)"):
        Sampler(num_steps=2).sample(fresh(ShapesUNet), ["a red circle left"])
    with pytest.raises(CapabilityError, match=r"ShapesFlux predicts velocity, DDIM.*FlowEuler\(\)"):
        Sampler(num_steps=2, solver=DDIM()).sample(fresh(ShapesFlux), ["a red circle left"])


def test_an_unknown_scheduler_is_refused():
    with pytest.raises(InputError, match="'euler' is unknown to shapes-unet; give ddim or"):
        UNET.make_scheduler("euler")


# ------------------------------------------------------------------------ training
@pytest.mark.parametrize("model", MODELS)
def test_every_loss_follows_from_seed_and_step(model, tmp_path: Path):
    made, loss = fresh(model), train_module.MODELS[model.name][1]
    options = train_module.TrainingOptions(
        folder=tmp_path, output=tmp_path / "w.safetensors", batch=4
    )
    device = torch.device("cpu")
    with torch.no_grad():
        losses = [loss(made, options, step, device).item() for step in (7, 7, 8)]
        other = loss(made, replace(options, seed=1), 7, device).item()
    assert losses[0] == losses[1] != losses[2]
    assert other != losses[0]


@pytest.mark.parametrize("model", MODELS)
def test_training_writes_weights_that_load(model, tmp_path: Path):
    output = tmp_path / "weights.safetensors"
    options = train_module.TrainingOptions(
        folder=tmp_path, output=output, steps=3, batch=2, save_every=2, learning_rate=1e-3
    )
    train_model(
        options, model, train_module.MODELS[model.name][1], save_weights, torch.device("cpu")
    )
    made = load_model(model, output)
    stored = load_file(output)
    assert made.fingerprint()["weights"] not in ("untrained", "")
    for name, value in made.state_dict().items():
        assert torch.equal(value, stored[name].float())


def test_missing_weights_say_how_to_train_them(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"shapes_image\.train shapes-flux"):
        load_model(ShapesFlux, tmp_path / "none.safetensors")


# ----------------------------------------------------------------- the shipped weights
@pytest.mark.slow
@pytest.mark.parametrize("load", [load_flux, load_unet])
def test_the_shipped_weights_do_what_prompts_say(load):
    model = load()
    assert find_weights(type(model)).is_file()
    prompts = model.demo_prompts()[1][:24]
    sampler = Sampler(num_steps=25, **SOLVERS[type(model)])
    found = measure_shares(sampler.sample(model, prompts, seed=0).samples, prompts)
    assert found["color"] >= 0.9
    assert found["place"] >= 0.9
    assert found["shape"] >= 0.75
