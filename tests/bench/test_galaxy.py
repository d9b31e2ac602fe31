"""Networks of galaxygrad: the file format, both forms, and the comparison in the own loop."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from erta_bench.galaxy import (
    FILES,
    GalaxyFlow,
    GalaxyNoise,
    ScoreConfig,
    ScoreNet,
    as_brightness,
    find_weights,
    load_flow,
    load_noise,
    load_score_net,
    read_leaves,
    write_pictures,
)
from erta_bench.setting import (
    Setting,
    choose_first_order_solver,
    choose_guidance,
    list_solvers,
    open_model,
)
from erta_framework.errors import CapabilityError, InputError
from erta_framework.metrics import psnr
from erta_framework.optional_dependencies import MissingExtraError
from erta_framework.sampling import NoGuidance, Sampler, solve
from erta_framework.testing import GaussianMixtureFlow

SMALL = ScoreConfig(side=8, hidden=6, mix_patches=5, mix_hidden=7, blocks=2)
INSTALLED = find_spec("galaxygrad") is not None
with_weights = pytest.mark.skipif(
    not INSTALLED, reason="needs galaxygrad: pip install --no-deps galaxygrad==0.2.1"
)


def make_network(config: ScoreConfig = SMALL) -> ScoreNet:
    torch.manual_seed(0)
    return ScoreNet(config).eval().requires_grad_(False)


def write_file(network: ScoreNet, path: Path) -> Path:
    """Write a network as `equinox.tree_serialise_leaves` does: its arrays, one after another."""
    state = dict(network.state_dict())
    end = state.pop("t1")
    state["conv_out.weight"] = state["conv_out.weight"].transpose(0, 1).flip(-2, -1)
    for name in ("conv_in.bias", "conv_out.bias"):
        state[name] = state[name].reshape(-1, 1, 1)
    with path.open("wb") as file:
        for tensor in state.values():
            np.save(file, tensor.numpy())
        np.save(file, np.float64(end))
    return path


class GaussianScore(ScoreNet):
    """The exact score of pictures whose pixels are normal, about `MEAN` with deviation `STD`."""

    MEAN, STD = 1.5, 0.7

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        decay = torch.exp(-times).reshape(-1, 1, 1, 1)
        variance = decay * self.STD**2 + 1 - decay
        return (decay.sqrt() * self.MEAN - x) / variance


# ------------------------------------------------------------------------- the file format
def test_a_network_comes_back_from_its_file(tmp_path: Path) -> None:
    network = make_network()
    found = load_score_net(write_file(network, tmp_path / "net.eqx"))
    assert found.config == SMALL
    x, times = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 2.0, 10.0])
    torch.testing.assert_close(found(x, times), network(x, times))


def test_a_transposed_convolution_is_turned_round(tmp_path: Path) -> None:
    """Equinox correlates the dilated input with the kernel, so pixel r of a patch has w[-1 - r]."""
    network = make_network()
    path = write_file(network, tmp_path / "net.eqx")
    kernel = read_leaves(path)[2]
    y = torch.randn(1, 6, 2, 2)
    dilated = torch.zeros(1, 6, 5, 5)
    dilated[..., ::4, ::4] = y
    expected = torch.nn.functional.conv2d(dilated, kernel, network.conv_out.bias, padding=3)
    torch.testing.assert_close(load_score_net(path).conv_out(y), expected)


def test_pickled_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.eqx"
    with path.open("wb") as file:
        np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"no NPY array at byte .* allow_pickle"):
        load_score_net(path)
    path.write_bytes(b"not an array")
    with pytest.raises(InputError, match="no NPY array"):
        read_leaves(path)
    with path.open("wb") as file:
        np.save(file, np.zeros((2, 2)))
    with pytest.raises(InputError, match="holds 1 arrays, a ScoreNet has 7 and 12 a block"):
        load_score_net(path)


def test_arrays_of_other_shapes_are_named(tmp_path: Path) -> None:
    network = make_network()
    network.norm.weight = torch.nn.Parameter(torch.ones(3, 3))
    with pytest.raises(InputError, match=r"norm.weight has the shape \(3, 3\), expected \(6, 4\)"):
        load_score_net(write_file(network, tmp_path / "net.eqx"))


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no network 'moon'; give hsc32"):
        find_weights("moon")
    monkeypatch.setattr("erta_bench.galaxy._weights.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as error:
        open_model("galaxy-hsc32")
    assert "pip install --no-deps galaxygrad==0.2.1" in str(error.value)


# ------------------------------------------------------------------------- both forms
def test_both_forms_lead_to_the_exact_samples() -> None:
    """Pixels are normal, so the ODE has a closed form, a line in the noise.

    The SDE ends where a hundredth of the clean part is left. The flow starts beyond that, at pure
    noise, and has the same line but for the extension of the network.
    """
    network = GaussianScore(SMALL)
    mean, std, most = GaussianScore.MEAN, GaussianScore.STD, math.expm1(10.0)
    for model, tolerance in ((GalaxyNoise(network), 1e-3), (GalaxyFlow(network), 2e-2)):
        solver = choose_first_order_solver(model)
        sampler = Sampler(solver=solver, guidance=choose_guidance(model), num_steps=50)
        solution = solve(sampler, model, ["a", "b"], seed=3)
        noise = solution.latents[:, 0] * math.sqrt(1 + most)
        expected = mean + std / math.sqrt(std**2 + most) * (noise - mean)
        assert float((solution.latents[:, -1] - expected).abs().max()) < tolerance


def test_both_forms_say_the_same_of_the_same_latents() -> None:
    network = make_network()
    flow, noisy = GalaxyFlow(network), GalaxyNoise(network)
    x, s = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 0.9])
    ratio = (s / (1 - s)).reshape(-1, 1, 1, 1)
    column = s.reshape(-1, 1, 1, 1)
    velocity = flow(x, 1000 * s, torch.zeros(2, 0))
    clean, noise = x - column * velocity, x + (1 - column) * velocity
    scaled = (clean + ratio * noise) / (1 + ratio.square()).sqrt()
    times = ratio.square().log1p().flatten()
    torch.testing.assert_close(noisy(scaled, times, torch.zeros(2, 0)), noise)


def test_the_flow_is_finite_at_pure_noise() -> None:
    model = GalaxyFlow(make_network())
    velocity = model(torch.randn(1, 1, 8, 8), torch.tensor([1000.0]), torch.zeros(1, 0))
    assert bool(velocity.isfinite().all())


def test_the_network_is_never_asked_beyond_its_times() -> None:
    class Watched(ScoreNet):
        def forward(self, x: Tensor, times: Tensor) -> Tensor:
            asked.append(float(times.max()))
            return super().forward(x, times)

    for kind in (GalaxyFlow, GalaxyNoise):
        asked: list[float] = []
        model = kind(Watched(SMALL).eval())
        solver = choose_first_order_solver(model)
        Sampler(solver=solver, guidance=model.guidance, num_steps=10).sample(model, ["a"])
        assert len(asked) == 10
        assert max(asked) == pytest.approx(10.0, rel=1e-5)
        assert min(asked) > 0


def test_a_model_says_how_it_is_sampled() -> None:
    model = GalaxyNoise(make_network(), "galaxy-test")
    assert list(list_solvers(model)) == ["euler", "ab2", "dpmpp"]
    assert choose_guidance(model) == NoGuidance()
    assert not list_solvers(GaussianMixtureFlow())
    assert repr(choose_guidance(GaussianMixtureFlow())).startswith("CFG(scale=3.0")
    calibration, held_out = model.demo_prompts()
    assert not set(calibration) & set(held_out)
    assert model.fingerprint() != GalaxyFlow(make_network()).fingerprint()


def test_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    samples = torch.zeros(2, 1, 8, 8)
    assert as_brightness(samples + 10 * np.log(2.0)).allclose(torch.ones(()))
    found = write_pictures({"full": samples, "12 calls": samples[:1]}, tmp_path / "a.png")
    assert found.read_bytes().startswith(b"\x89PNG")


# ------------------------------------------------------------------------- the comparison
def make_setting(model: GalaxyFlow | GalaxyNoise) -> Setting:
    calibration, held_out = model.demo_prompts()
    return Setting(
        model=model,
        calibration=calibration[:3],
        held_out=held_out[:2],
        steps=10,
        guidance=choose_guidance(model),
        accelerator="cpu",
    )


ROWS = (
    "plain, same solver",
    "plain AB2",
    "uniform reuse",
    "FBCache",
    "TaylorSeer, modules",
    "diffusers FirstBlockCache",
    "plain AB2 on the multistep plan's steps",
    "plain UniPC on the multistep plan's steps",
)


def test_rows_run_in_the_own_loop_and_the_others_say_why_not(seeming_gpu: None) -> None:
    pytest.importorskip("diffusers")
    from erta_bench.comparison import compare_peers

    setting = make_setting(GalaxyFlow(make_network(), "galaxy-test"))
    bench = compare_peers(setting, calls=[5], seeds=1, rows=ROWS)
    rows = {row["name"]: row for row in bench.rows}
    assert bench.settings["pipeline"] == "the own loop"
    assert bench.settings["model"] == "galaxy-test"
    ran = ("plain, same solver", "plain AB2", "uniform reuse", ROWS[6])
    for name in ran:
        assert rows[name]["status"] == "measured", rows[name]
        assert rows[name]["calls"] == 5
        assert rows[name]["work"] == pytest.approx(0.5)
        assert rows[name]["right"] is None
    for name in set(ROWS) - set(ran):
        assert rows[name]["status"] == "refused", rows[name]
        assert rows[name]["detail"].startswith("CapabilityError")
    assert "attach to a pipeline" in str(rows["diffusers FirstBlockCache"]["detail"])
    assert "block stack" in str(rows["FBCache"]["detail"])


def test_the_own_loop_is_that_of_a_sampler() -> None:
    """Every plain row and the fine solution equal what `Sampler` and `solve` give."""
    pytest.importorskip("diffusers")
    from erta_bench.comparison import Prepared
    from erta_bench.comparison._contender import plain
    from erta_bench.comparison._own_runner import make_own_runner

    model = GalaxyNoise(make_network(), "galaxy-test")
    runner = make_own_runner(make_setting(model))
    prompts = ["a", "b"]
    for name, solver in model.solvers().items():
        found = runner.run(Prepared(plain("row", name), 4), prompts, seed=7)
        sampler = Sampler(solver=solver, guidance=NoGuidance(), num_steps=4)
        assert found.samples.samples.equal(sampler.sample(model, prompts, seed=7).samples)
        assert found.calls == found.work == 4
    fine = runner.solve(prompts, 7, substeps=8)
    full = Sampler(solver=model.solvers()["euler"], guidance=NoGuidance(), num_steps=10)
    assert fine.samples.equal(solve(full, model, prompts, seed=7).latents[:, -1])
    assert runner.list_sigmas() == full.schedule.sigmas


def test_a_solver_that_the_model_lacks_is_named() -> None:
    pytest.importorskip("diffusers")
    from erta_bench.comparison._own_runner import make_own_runner

    setting = make_setting(GalaxyFlow(make_network(), "galaxy-test"))
    with pytest.raises(InputError, match="'heun' is unknown to galaxy-test; give euler or ab2"):
        make_own_runner(setting, "heun")
    with pytest.raises(CapabilityError, match="no solver 'unipc'"):
        make_own_runner(setting)._sample_on_sigmas("unipc", (1.0, 0.5), ())


# ------------------------------------------------------------------------- the real networks
@with_weights
@pytest.mark.parametrize("name", FILES)
def test_every_weight_file_is_read(name: str) -> None:
    network = load_score_net(find_weights(name))
    assert network.config.side == int(name[-3:].lstrip("abcdefghijklmnopqrstuvwxyz"))
    assert float(network.t1) == 10.0


@with_weights
def test_scores_are_those_of_the_original_code() -> None:
    """Weighted sums that models_eqx.py of the package gave under JAX 0.10.2 and equinox 0.13.8."""
    network = load_score_net(find_weights("hsc32"))
    line = torch.linspace(-2, 2, 1024).reshape(1, 1, 32, 32)
    weights = torch.linspace(0, 1, 1024).reshape(1, 1, 32, 32)
    found = [float((weights * network(line, torch.tensor([t]))).sum()) for t in (0.5, 3.0, 9.9)]
    assert found == pytest.approx([-5.5348, -45.3361, -323.8954], abs=2e-2)


@with_weights
def test_galaxies_are_bright_in_the_middle_of_a_dark_sky() -> None:
    """And both forms draw the same ones."""
    drawn = []
    for model in (load_flow("hsc32"), load_noise("hsc32")):
        solver = model.solvers()["ab2"]
        sampler = Sampler(solver=solver, guidance=model.guidance, num_steps=50)
        drawn.append(sampler.sample(model, ["a", "b", "c"], seed=0).samples)
        light = as_brightness(drawn[-1][:, 0])
        assert bool((light[:, 12:20, 12:20].mean((1, 2)) > 3 * light.mean((1, 2))).all())
        assert float(light[:, :2].abs().mean()) < 0.05
    assert float(psnr(*drawn).mean()) > 28
