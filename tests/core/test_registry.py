"""The catalogue over entry points, with distributions made up for the test."""

from __future__ import annotations

import importlib
import sys
import textwrap

import pytest

from erta_framework.config import build_masked_run, build_run
from erta_framework.errors import ConfigError, InputError, RegistryError
from erta_framework.plugins import _registry as registry
from erta_framework.sampling import open_guidance_catalogue, open_solver_catalogue
from erta_framework.sampling.solvers import (
    ContinuousVPSolver,
    EDMSolver,
    FlowSolver,
    VESolver,
    VPSolver,
)

GROUP = "erta_framework.policies"
POLICY = """
from erta_framework import Policy, hookimpl

class Toy(Policy):
    period: int = 2

    @hookimpl
    def pre_step(self):
        pass
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Installs distributions into a folder on the path; gives the installer."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv(registry.LIMIT_VARIABLE, raising=False)

    def install(name, points, version="1.0", modules=None, group=GROUP):
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        lines = [f"[{group}]", *(f"{key} = {value}" for key, value in points.items())]
        (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")
        for module, source in (modules or {}).items():
            (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        importlib.invalidate_caches()

    yield install
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def test_first_party_policies_come_through_the_same_door():
    catalogue = registry.policies()
    entries = {entry.name: entry for entry in catalogue.entries()}
    assert {"ertacache", "skip_policy", "timestep_adjuster"} <= set(entries)
    assert entries["ertacache"].distribution == "erta-framework"
    assert catalogue.load("ertacache").__name__ == "ERTACache"


def test_third_party_policy(site):
    site("erta-toy", {"toy": "erta_toy:Toy"}, modules={"erta_toy": POLICY})
    catalogue = registry.policies()
    assert "toy" in catalogue.names()
    assert catalogue.load("toy")(period=5).period == 5


def test_names_import_nothing(site):
    site(
        "erta-bomb",
        {"bomb": "erta_bomb:Bomb"},
        modules={"erta_bomb": "raise RuntimeError('imported')"},
    )
    assert "bomb" in registry.policies().names()
    assert [entry.version for entry in registry.policies().entries() if entry.name == "bomb"] == [
        "1.0"
    ]
    assert "erta_bomb" not in sys.modules


def test_unknown_name_is_answered_with_a_suggestion():
    with pytest.raises(RegistryError, match=r"provides 'ertacash'.*did you mean 'ertacache'"):
        registry.policies().load("ertacash")


def test_two_distributions_with_one_name(site):
    site("erta-one", {"toy": "erta_one:Toy"}, modules={"erta_one": POLICY})
    site("erta-two", {"toy": "erta_two:Toy"}, version="2.5", modules={"erta_two": POLICY})
    assert registry.policies().names().count("toy") == 1
    with pytest.raises(RegistryError) as error:
        registry.policies().load("toy")
    assert "erta-one 1.0 (erta_one:Toy), erta-two 2.5 (erta_two:Toy)" in str(error.value)
    assert "uninstall one" in str(error.value)
    assert registry.policies(only=["erta-two"]).load("toy").__module__ == "erta_two"


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError"),
        ("1 / 0", "ZeroDivisionError"),
        ("def broken(:", "SyntaxError"),
        ("", "AttributeError"),
    ],
)
def test_import_failure_names_distribution_and_version(site, source, cause):
    site("erta-sick", {"sick": "erta_sick:Sick"}, version="0.3", modules={"erta_sick": source})
    with pytest.raises(RegistryError) as error:
        registry.policies().load("sick")
    assert "'sick' of erta-sick 0.3 (erta_sick:Sick) failed to import" in str(error.value)
    assert cause in str(error.value)
    assert error.value.__cause__ is not None


@pytest.mark.parametrize("source", ["Toy = 3", "class Toy: pass", "def Toy(): pass"])
def test_wrong_type(site, source):
    site("erta-odd", {"odd": "erta_odd:Toy"}, version="0.2", modules={"erta_odd": source})
    with pytest.raises(RegistryError, match=r"of erta-odd 0\.2 .* not a subclass of .*Policy"):
        registry.policies().load("odd")


def test_models_are_functions(site):
    site(
        "erta-zoo",
        {"tiny": "erta_zoo:load", "number": "erta_zoo:NUMBER"},
        modules={"erta_zoo": "NUMBER = 3\ndef load(): return 'model'"},
        group="erta_framework.models",
    )
    assert registry.models().load("tiny")() == "model"
    with pytest.raises(RegistryError, match="is 3, not a function that returns a model"):
        registry.models().load("number")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, {"toy", "tie"}),
        ("none", set()),
        ("", set()),
        ("erta-toy", {"toy"}),
        ("ERTA_Toy", {"toy"}),
        (" erta.toy , erta__tie ", {"toy", "tie"}),
        ("none,erta-tie", {"tie"}),
        ("something-else", set()),
    ],
)
def test_environment_limits_what_may_load(site, monkeypatch, value, expected):
    site("erta-toy", {"toy": "erta_toy:Toy"}, modules={"erta_toy": POLICY})
    site("Erta_Tie", {"tie": "erta_tie:Toy"}, modules={"erta_tie": POLICY})
    if value is not None:
        monkeypatch.setenv(registry.LIMIT_VARIABLE, value)
    catalogue = registry.policies()
    names = set(catalogue.names())
    assert names & {"toy", "tie"} == expected
    assert "ertacache" in names  # first-party code is always there
    for name in ("toy", "tie"):
        if name in expected:
            assert catalogue.load(name).__name__ == "Toy"
        else:
            with pytest.raises(RegistryError, match="ERTA_PLUGINS limits what loads"):
                catalogue.load(name)
    assert ("erta_toy" in sys.modules) == ("toy" in expected)


def test_limit_given_in_code_comes_before_the_environment(site, monkeypatch):
    site("erta-toy", {"toy": "erta_toy:Toy"}, modules={"erta_toy": POLICY})
    monkeypatch.setenv(registry.LIMIT_VARIABLE, "none")
    assert "toy" in registry.policies(only=["erta_toy"]).names()
    monkeypatch.delenv(registry.LIMIT_VARIABLE)
    with pytest.raises(RegistryError, match=r"only first-party code may be loaded"):
        registry.policies(only=[]).load("toy")


@pytest.mark.parametrize("name", ["Erta-Toy", "erta_toy", "erta.toy", "erta-_.toy", " ERTA__TOY "])
def test_normalised_names(name):
    assert registry.normalize_name(name) == "erta-toy"


# -------------------------------------------------------------------- solvers and guidance
SOLVER = """
from dataclasses import dataclass
from erta_framework.sampling.solvers import FlowEuler, Schedule

@dataclass(frozen=True, kw_only=True)
class Halved:
    factor: float = 0.5

    @property
    def capabilities(self): return frozenset({"first_order", "velocity"})
    @property
    def prediction(self): return "velocity"
    def schedule(self, num_steps, sigmas=None): return FlowEuler().schedule(num_steps, sigmas)
    def time_of(self, sigma): return sigma
    def noised(self, clean, noise, sigma): return noise
    def step(self, x, output, interval, state): return x, None

@dataclass(frozen=True, kw_only=True)
class Short:
    capabilities: frozenset = frozenset()
    prediction: str = "velocity"
    def schedule(self, num_steps, sigmas=None): ...
    def step(self, x, output, interval, state): ...

class Bare(Halved):
    pass

class Plain:
    pass

def make(): return Halved()
"""
GUIDANCE_RULE = """
from dataclasses import dataclass
from erta_framework.sampling.guidance import Branch

@dataclass(frozen=True, kw_only=True)
class Twice:
    weight: float = 2.0
    names = ("cond",)
    def branches(self, cond, uncond, index, num_steps): return (Branch("cond", cond),)
    def combine(self, outputs): return self.weight * outputs["cond"]
"""


def test_first_party_solvers_and_guidance_come_through_the_same_door():
    solvers, guidance = open_solver_catalogue(only=[]), open_guidance_catalogue(only=[])
    assert {"flow_euler", "flow_ab2", "ddim", "flow", "vp", "vp_continuous", "ve", "edm"} == set(
        solvers.names()
    )
    assert {"none", "cfg"} == set(guidance.names())
    assert {entry.distribution for entry in solvers.entries()} == {"erta-framework"}
    for name in solvers.names():
        made = solvers.load(name)()
        assert made.prediction in made.capabilities
    assert guidance.load("cfg")().scale == 3.0


def test_third_party_solver_and_guidance_in_a_configuration(site):
    site(
        "erta-half",
        {"halved": "erta_half:Halved"},
        modules={"erta_half": SOLVER},
        group="erta_framework.solvers",
    )
    site(
        "erta-rule",
        {"twice": "erta_rule:Twice"},
        modules={"erta_rule": GUIDANCE_RULE},
        group="erta_framework.guidance",
    )
    run = build_run({"solver": {"halved": {"factor": 0.25}}, "guidance": {"twice": {"weight": 3}}})
    assert (type(run.solver).__name__, run.solver.factor) == ("Halved", 0.25)
    assert (type(run.guidance).__name__, run.guidance.weight) == ("Twice", 3.0)
    with pytest.raises(ConfigError, match=r"solver.halved: unknown key 'fctor'; did you mean 'fac"):
        build_run({"solver": {"halved": {"fctor": 1}}})


DECODER = """
from dataclasses import dataclass
import torch
from erta_framework.masked import Decoder

@dataclass(frozen=True, kw_only=True)
class Greedy(Decoder):
    bonus: float = 0.0
    def choose(self, candidates, count, probability, priority): return candidates

class Undecorated:
    pass
"""


def test_third_party_decoder_in_a_configuration(site):
    site(
        "erta-greedy",
        {"greedy": "erta_greedy:Greedy", "wrong": "erta_greedy:Undecorated"},
        modules={"erta_greedy": DECODER},
        group="erta_framework.decoders",
    )
    run = build_masked_run({"decoder": {"greedy": {"bonus": 2}}})
    assert (type(run.decoder).__name__, run.decoder.bonus) == ("Greedy", 2.0)
    with pytest.raises(RegistryError, match=r"'wrong' of .*not a dataclass that is a subclass of"):
        build_masked_run({"decoder": "wrong"})
    with pytest.raises(ConfigError, match="unknown decoder 'greedy'"):
        build_masked_run({"decoder": "greedy"}, only=[])


def test_an_installed_solver_is_not_active(site):
    site(
        "erta-bomb",
        {"bomb": "erta_bomb:Bomb"},
        modules={"erta_bomb": "raise RuntimeError('imported')"},
        group="erta_framework.solvers",
    )
    assert "bomb" in open_solver_catalogue().names()
    build_run({"solver": "flow_euler"})
    assert "erta_bomb" not in sys.modules
    with pytest.raises(RegistryError, match=r"'bomb' of erta-bomb 1\.0 .*failed to import"):
        build_run({"solver": "bomb"})


def test_the_limit_holds_for_solvers_and_guidance(site, monkeypatch):
    site(
        "erta-half",
        {"halved": "erta_half:Halved"},
        modules={"erta_half": SOLVER},
        group="erta_framework.solvers",
    )
    with pytest.raises(ConfigError, match=r"unknown solver 'halved' \(only first-party code may"):
        build_run({"solver": "halved"}, only=[])
    monkeypatch.setenv(registry.LIMIT_VARIABLE, "none")
    assert "halved" not in open_solver_catalogue().names()
    with pytest.raises(ConfigError, match=r"unknown solver 'halved' \(ERTA_PLUGINS limits what"):
        build_run({"solver": "halved"})
    assert "erta_half" not in sys.modules
    monkeypatch.setenv(registry.LIMIT_VARIABLE, "erta-half")
    assert build_run({"solver": "halved"}).solver.factor == 0.5


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("Short", "which lacks noised, time_of of erta_framework.sampling.solvers.Solver"),
        ("Plain", "not a dataclass that offers what erta_framework.sampling.solvers.Solver"),
        ("make", "not a dataclass that offers what erta_framework.sampling.solvers.Solver"),
    ],
)
def test_a_class_that_is_no_solver_is_refused_by_name(site, target, problem):
    site(
        "erta-odd",
        {"odd": f"erta_odd:{target}"},
        modules={"erta_odd": SOLVER},
        group="erta_framework.solvers",
    )
    with pytest.raises(RegistryError) as error:
        build_run({"solver": "odd"})
    assert f"'odd' of erta-odd 1.0 (erta_odd:{target}) is" in str(error.value)
    assert problem in str(error.value)


def test_a_class_that_is_no_guidance_is_refused_by_name(site):
    site(
        "erta-odd",
        {"odd": "erta_odd:Halved"},
        modules={"erta_odd": SOLVER},
        group="erta_framework.guidance",
    )
    with pytest.raises(RegistryError, match=r"lacks branches, combine, names of erta_framework"):
        build_run({"guidance": "odd"})


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"flow": {"prediction": "sample"}}, FlowSolver(prediction="sample")),
        (
            {"vp": {"integrator": "dpmpp_2m", "grid": "karras"}},
            VPSolver(integrator="dpmpp_2m", grid="karras"),
        ),
        ({"edm": {"sigma_max": 40}}, EDMSolver(sigma_max=40.0)),
        ("ve", VESolver()),
        ("vp_continuous", ContinuousVPSolver()),
    ],
    ids=str,
)
def test_solvers_of_parts_in_a_configuration(spec, expected):
    assert build_run({"solver": spec}).solver == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"vp": {"integrator": "heun"}}, "solver.vp.integrator is 'heun'"),
        ({"vp": {"grid": "karas"}}, "solver.vp.grid is 'karas'"),
        ({"flow": {"prediction": "x0"}}, "solver.flow.prediction is 'x0'"),
    ],
)
def test_options_of_solvers_are_typed(spec, message):
    with pytest.raises(ConfigError) as error:
        build_run({"solver": spec})
    assert message in str(error.value)


def test_a_prediction_that_the_process_does_not_have_names_its_place():
    with pytest.raises(InputError, match="with Flow a network predicts velocity") as error:
        build_run({"solver": {"flow": {"prediction": "epsilon"}}})
    assert error.value.__notes__ == ["in the configuration at solver.flow"]


# ------------------------------------------------------------------- the project's own code
@pytest.mark.parametrize("name", ["erta-framework", "erta-bench"])
def test_no_limit_hides_the_projects_own_distributions(monkeypatch, name):
    monkeypatch.setenv(registry.LIMIT_VARIABLE, "none")
    found = [*registry.models().entries(), *registry.commands().entries()]
    assert name in {entry.distribution for entry in found}


def test_what_the_limit_hides_is_known(site, monkeypatch):
    site("erta-toy", {"toy": "erta_toy:Toy"}, modules={"erta_toy": POLICY})
    assert registry.policies().hidden() == []
    monkeypatch.setenv(registry.LIMIT_VARIABLE, "none")
    assert [entry.name for entry in registry.policies().hidden()] == ["toy"]


def test_installing_a_package_does_not_change_the_default_policy(site):
    expected = registry.find_default_policy()
    site("erta-toy", {"policy": "erta_toy:Toy"}, group="erta_framework.defaults")
    site("erta-tie", {"toy": "erta_toy:Toy"}, modules={"erta_toy": POLICY})
    assert registry.find_default_policy() == expected == "ertacache"
