"""Configuration: by name, typed, never by import path."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any, Literal

import pytest
from omegaconf import OmegaConf

from erta_framework import (
    CFG,
    DDIM,
    Engine,
    FlowAdamsBashforth2,
    FlowEuler,
    NoGuidance,
    Policy,
    Profile,
    hookimpl,
)
from erta_framework.config import (
    RunConfig,
    apply_override,
    build_policies,
    build_run,
    construct,
    load_config,
    options_of,
    registered_name,
)
from erta_framework.errors import ConfigError, ErtaError, PolicyError, RegistryError
from erta_policies.ertacache import ErrorLinearizer, ERTACache, SkipPolicy, TimestepAdjuster


class Typed(Policy):
    """One field of each kind that a configuration can hold."""

    number: int = 1
    share: float = 0.5
    flag: bool = False
    text: str = ""
    maybe: int | None = None
    choice: Literal["a", "b", 3] = "a"
    numbers: tuple[int, ...] = ()
    optional: tuple[float, ...] | None = None
    pair: tuple[int, str] = (0, "")
    names: list[str] | None = None
    file: Path | None = None
    part: bool | Policy = True
    parts_given: tuple[Policy, ...] = ()
    anything: Any = None

    @hookimpl
    def pre_step(self):
        pass


def typed(**options):
    return construct(Typed, options, where="typed")


# ------------------------------------------------------------------------------- values
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"number": 7}, 7),
        ({"number": "7"}, 7),
        ({"share": 2}, 2.0),
        ({"share": 1e-3}, 1e-3),
        ({"flag": True}, True),
        ({"text": "x"}, "x"),
        ({"text": 32}, "32"),
        ({"maybe": None}, None),
        ({"maybe": 3}, 3),
        ({"choice": "b"}, "b"),
        ({"choice": 3}, 3),
        ({"numbers": [1, 2]}, (1, 2)),
        ({"numbers": []}, ()),
        ({"optional": None}, None),
        ({"optional": [1, 0.5]}, (1.0, 0.5)),
        ({"pair": [4, "x"]}, (4, "x")),
        ({"names": ["a", "b"]}, ["a", "b"]),
        ({"file": "a/b.txt"}, Path("a/b.txt")),
        ({"part": False}, False),
        ({"anything": {"a": [1]}}, {"a": [1]}),
    ],
    ids=str,
)
def test_values_become_what_the_field_declares(options, expected):
    ((name, _),) = options.items()
    value = getattr(typed(**options), name)
    assert value == expected
    assert type(value) is type(expected) or isinstance(expected, Path)


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"number": True}, "typed.number is True of type bool, expected int"),
        ({"number": 1.5}, "typed.number is 1.5 of type float, expected int"),
        ({"number": None}, "typed.number is None of type NoneType, expected int"),
        ({"number": "many"}, "typed.number is 'many' of type str, expected int"),
        ({"number": [1]}, "typed.number is [1] of type list, expected int"),
        ({"share": True}, "typed.share is True of type bool, expected float"),
        ({"share": "much"}, "typed.share is 'much' of type str, expected float"),
        ({"flag": 1}, "typed.flag is 1 of type int, expected bool"),
        ({"flag": "yes"}, "typed.flag is 'yes' of type str, expected bool"),
        ({"text": ["a"]}, "typed.text is ['a'] of type list, expected str"),
        ({"text": {"a": 1}}, "typed.text is {'a': 1} of type dict, expected str"),
        ({"maybe": True}, "typed.maybe is True of type bool, expected int | None"),
        ({"choice": "c"}, "typed.choice is 'c' of type str, expected Literal['a', 'b', 3]"),
        ({"choice": 3.0}, "typed.choice is 3.0 of type float"),
        ({"numbers": 3}, "typed.numbers is 3 of type int, expected tuple[int, ...]"),
        ({"numbers": "12"}, "typed.numbers is '12' of type str, expected tuple[int, ...]"),
        ({"numbers": [1, "x"]}, "typed.numbers.1 is 'x' of type str, expected int"),
        ({"numbers": [True]}, "typed.numbers.0 is True of type bool, expected int"),
        ({"pair": [1, "a", 2]}, "typed.pair has 3 items, expected 2"),
        ({"part": 3}, "typed.part is 3 of type int"),
    ],
    ids=str,
)
def test_wrong_types_name_the_place(options, place):
    with pytest.raises(ConfigError) as error:
        typed(**options)
    assert place in str(error.value)


def test_true_is_no_literal_one():
    class One(Policy):
        value: Literal[1, 2] = 1

    with pytest.raises(ConfigError, match="value is True of type bool"):
        construct(One, {"value": True}, where="one")


def test_refusal_of_the_policy_itself_says_where():
    with pytest.raises(PolicyError) as error:
        build_policies([{"skip_policy": {"evenly": 5, "every": 2}}])
    assert "exactly one of" in str(error.value)
    assert error.value.__notes__ == ["in the configuration at policies.0.skip_policy"]


def test_other_errors_of_a_constructor_say_where():
    class Fussy(Policy):
        value: int = 0

        def __post_init__(self):
            raise ValueError("not today")

    with pytest.raises(ConfigError, match="fussy: ValueError: not today"):
        construct(Fussy, {"value": 1}, where="fussy")


# ------------------------------------------------------------------------------ policies
def test_policies_by_name_and_by_options():
    first, second = build_policies([{"skip_policy": {"evenly": 5}}, "residual_reuse"])
    assert isinstance(first, SkipPolicy)
    assert (first.evenly, second.name) == (5, "residual_reuse")
    assert build_policies([]) == ()
    ready = SkipPolicy(evenly=3)
    assert build_policies([ready]) == (ready,)


def test_nested_policies():
    (recipe,) = build_policies(
        [
            {
                "ertacache": {
                    "profile": "p.safetensors",
                    "calls": 5,
                    "adjuster": {"timestep_adjuster": {"minimum": 0.5}},
                    "linearizer": "error_linearizer",
                    "predictor": False,
                }
            }
        ]
    )
    assert isinstance(recipe, ERTACache)
    assert isinstance(recipe.adjuster, TimestepAdjuster)
    assert recipe.adjuster.minimum == 0.5
    assert isinstance(recipe.linearizer, ErrorLinearizer)
    assert recipe.predictor is False


def test_lists_of_nested_policies():
    policy = typed(parts_given=[{"skip_policy": {"evenly": 5}}, "residual_reuse"])
    assert [part.name for part in policy.parts_given] == ["skip_policy", "residual_reuse"]
    with pytest.raises(ConfigError, match=r"typed\.parts_given\.1\.skip_policy: unknown key 'x'"):
        typed(parts_given=["residual_reuse", {"skip_policy": {"x": 5}}])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"polices": []}, "configuration: unknown key 'polices'; did you mean 'policies'?"),
        ({"solver": {"flow_euler": {"shft": 1}}}, "solver.flow_euler: unknown key 'shft'; did you"),
        ({"guidance": {"cfg": {"scal": 1}}}, "guidance.cfg: unknown key 'scal'; did you mean 'sca"),
        (
            {"policies": ["residual_reuse", {"skip_policy": {"evenli": 3}}]},
            "policies.1.skip_policy: unknown key 'evenli'; did you mean 'evenly'?",
        ),
        (
            {"policies": [{"ertacache": {"adjuster": {"timestep_adjuster": {"fi": 3}}}}]},
            "policies.0.ertacache.adjuster.timestep_adjuster: unknown key 'fi'",
        ),
        ({"solver": "flow_eular"}, "unknown solver 'flow_eular'; did you mean 'flow_euler'"),
        ({"guidance": "cgf"}, "unknown guidance 'cgf'; did you mean 'cfg'?"),
        ({"solver": None}, "solver is None; write a name or"),
        ({"solver": {"ddim": 3}}, "solver is {'ddim': 3}; write a name or"),
        ({"policies": "skip_policy"}, "policies is 'skip_policy'; it is a list"),
        ({"policies": {"skip_policy": {}}}, "it is a list, so that the order is visible"),
        ({"policies": [3]}, "policies.0 is 3; write a name or {name: {option: value}}"),
        ({"policies": [{"a": {}, "b": {}}]}, "policies.0 is {'a': {}, 'b': {}}; write a name"),
        ({"steps": True}, "configuration.steps is True of type bool, expected int"),
        ({"prompts": "a red circle"}, "configuration.prompts is 'a red circle' of type str"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_unknown_keys_and_names_at_every_level(values, message):
    with pytest.raises(ConfigError) as error:
        build_run(values)
    assert message in str(error.value)


def test_unknown_policy():
    with pytest.raises(RegistryError, match=r"'ertacash'.*did you mean 'ertacache'"):
        build_run({"policies": ["ertacash"]})


@pytest.mark.parametrize(
    "values",
    [
        {"_target_": "os.system"},
        {"policies": [{"_target_": "this_module.must_not_be_imported"}]},
        {"policies": [{"_target_": {"x": 1}}]},
        {"policies": [{"skip_policy": {"_target_": "antigravity", "evenly": 3}}]},
        {"policies": ["antigravity.Policy"]},
        {"policies": ["erta_policies.ertacache:SkipPolicy"]},
        {"solver": {"_target_": "antigravity"}},
        {"guidance": {"antigravity": {}}},
    ],
    ids=str,
)
def test_nothing_is_imported_by_a_configuration(values):
    with pytest.raises(ErtaError):
        build_run(values)
    assert "antigravity" not in sys.modules
    assert "this_module" not in sys.modules


# -------------------------------------------------------------------- files and overrides
FILE = """
steps: 20
solver: {flow_euler: {shift: 5}}
guidance:
  cfg: {scale: 4, stop: 0.5}
policies:
  - skip_policy: {evenly: 10}
  - residual_reuse
prompts: [a red circle moving left, a blue square]
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(FILE)
    return path


def test_defaults():
    config = load_config()
    assert config == RunConfig()
    assert config.solver == FlowEuler()
    assert config.guidance == CFG(scale=3.0)


def test_file(config_file):
    config = load_config(config_file)
    assert config.steps == 20
    assert config.solver == FlowEuler(shift=5.0)
    assert config.guidance == CFG(scale=4.0, stop=0.5)
    assert [policy.name for policy in config.policies] == ["skip_policy", "residual_reuse"]
    assert config.prompts == ("a red circle moving left", "a blue square")
    assert Engine(config.policies).explain()


@pytest.mark.parametrize(
    ("overrides", "read", "expected"),
    [
        (["steps=30"], lambda c: c.steps, 30),
        (["steps=30", "steps=31"], lambda c: c.steps, 31),
        (["policies.0.skip_policy.evenly=17"], lambda c: c.policies[0].evenly, 17),
        (["policies.1.residual_reuse={}"], lambda c: c.policies[1].name, "residual_reuse"),
        (["policies=[]"], lambda c: c.policies, ()),
        (["policies=null"], lambda c: c.policies, ()),
        (["guidance=none"], lambda c: c.guidance, NoGuidance()),
        (["guidance.cfg.batched=true"], lambda c: c.guidance, CFG(scale=4, stop=0.5, batched=True)),
        (["solver=flow_ab2"], lambda c: c.solver, FlowAdamsBashforth2()),
        (["solver={ddim: {train_steps: 10}}"], lambda c: c.solver, DDIM(train_steps=10)),
        (["sigmas=[1,0.5,0]"], lambda c: c.sigmas, (1.0, 0.5, 0.0)),
        (["sigmas=null"], lambda c: c.sigmas, None),
        (["prompts=['x, y', 'k=v']"], lambda c: c.prompts, ("x, y", "k=v")),
        (["prompts.1=a green disk"], lambda c: c.prompts[1], "a green disk"),
        (["precision=32"], lambda c: c.precision, "32"),
        (["output=a=b"], lambda c: c.output, "a=b"),
        (["output=runs/${steps}"], lambda c: c.output, "runs/20"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_overrides(config_file, overrides, read, expected):
    assert read(load_config(config_file, overrides)) == expected


def test_options_of_a_policy_that_was_given_by_name():
    config = load_config(None, ["policies=[skip_policy]", "policies.0.skip_policy.evenly=17"])
    assert config.policies[0].evenly == 17  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "'steps' is not of the form key=value"),
        ("=3", "'=3' is not of the form key=value"),
        ("policies.7.skip_policy.evenly=17", "cannot apply the override 'policies.7.skip_policy"),
        ("policies.x.skip_policy.evenly=17", "cannot apply the override 'policies.x.skip_policy"),
        ("prompts=[{", "cannot apply the override 'prompts=[{'"),
        ("stepz=3", "unknown key 'stepz'; did you mean 'steps'?"),
        ("policies.0.skip_policy.evenli=3", "unknown key 'evenli'; did you mean 'evenly'?"),
        ("output=${nothing}", "cannot read the configuration"),
        ("output=${nobody:3}", "cannot read the configuration"),
    ],
)
def test_impossible_overrides(config_file, override, message):
    with pytest.raises(ConfigError) as error:
        load_config(config_file, [override])
    assert message in str(error.value)


def test_override_needs_no_file():
    config = OmegaConf.create({})
    apply_override(config, "a.b=3")
    assert config.a.b == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [("- a\n- b\n", "holds a list"), ("a: [", "cannot read"), ("steps: {", "cannot read")],
)
def test_unreadable_files(tmp_path, content, message):
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_config(path)
    with pytest.raises(ConfigError, match=r"cannot read .*gone\.yaml"):
        load_config(tmp_path / "gone.yaml")


# ---------------------------------------------------------------------------- round trip
@pytest.mark.parametrize(
    "policy",
    [
        SkipPolicy(evenly=5),
        SkipPolicy(steps=(0, 3, 7)),
        TimestepAdjuster(phi=(0.5, 1.0), network_time="actual"),
        ErrorLinearizer(profile=Path("a/p.safetensors"), granularity="channel"),
        ERTACache(
            profile="p.safetensors",
            calls=9,
            adjuster=TimestepAdjuster(minimum=0.5),
            skip=None,
            linearizer=False,
        ),
        ERTACache(profile="p.safetensors", skip=SkipPolicy(every=2)),
    ],
    ids=lambda policy: repr(policy)[:40],
)
def test_options_rebuild_the_policy(policy):
    options = options_of(policy)
    (again,) = build_policies([{type_name(policy): options}])
    assert type(again) is type(policy)
    assert options_of(again) == options


def type_name(policy):
    return registered_name(type(policy))


def test_what_no_file_can_hold():
    profile = Profile("toy", {}, {}, samples=1)
    with pytest.raises(ConfigError, match="profile holds Profile, which no configuration file"):
        options_of(SkipPolicy(profile=profile, calls=3))
    with pytest.raises(ConfigError, match=r"Typed is not registered"):
        options_of(typed(part=typed()))


def test_third_party_policies_and_their_limit(tmp_path, monkeypatch):
    folder = tmp_path / "erta_far-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: erta-far\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[erta_framework.policies]\nfar = erta_far_mod:Far\n")
    (tmp_path / "erta_far_mod.py").write_text(
        "from erta_framework import Policy, hookimpl\n"
        "class Far(Policy):\n"
        "    period: int = 2\n"
        "    @hookimpl\n"
        "    def pre_step(self):\n"
        "        pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    overrides = ["policies=[far]", "policies.0.far.period=4"]
    try:
        with pytest.raises(RegistryError, match="'far'"):
            load_config(None, overrides, only=[])
        assert "erta_far_mod" not in sys.modules
        (policy,) = load_config(None, overrides, only=["erta-far"]).policies
        assert policy.period == 4  # type: ignore[attr-defined]
        assert options_of(policy) == {"period": 4}
        assert type_name(policy) == "far"
    finally:
        sys.modules.pop("erta_far_mod", None)


# ------------------------------------------------------------------------ the converter
class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1


@dataclass(frozen=True)
class Grid:
    """A record inside a policy."""

    size: int
    offset: float = 0.0


class Rich(Policy):
    """Kinds of fields that few policies have."""

    colour: Colour = Colour.RED
    level: Level | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    grid: Grid | None = None
    grids: Sequence[Grid] = ()
    budget: Grid | Mapping[str, Any] | None = None
    skip: SkipPolicy | None = None

    @hookimpl
    def pre_step(self):
        pass


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"colour": "blue"}, Colour.BLUE),
        ({"level": 1}, Level.LOW),
        ({"weights": {"a": 1}}, {"a": 1.0}),
        ({"grid": {"size": 3}}, Grid(3)),
        ({"grid": Grid(4)}, Grid(4)),
        ({"grids": [{"size": 3, "offset": 1}]}, (Grid(3, 1.0),)),
        ({"budget": {"size": 3}}, Grid(3)),
    ],
    ids=str,
)
def test_records_enums_and_mappings(options, expected):
    ((name, _),) = options.items()
    value = getattr(construct(Rich, options, where="rich"), name)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colour": "green"}, "rich.colour is 'green' of type str, expected one of 'red', 'blue'"),
        ({"level": True}, "rich.level is True of type bool, expected Level | None"),
        ({"weights": {"a": "x"}}, "rich.weights.a is 'x' of type str, expected float"),
        ({"weights": [1]}, "rich.weights is [1] of type list, expected "),
        ({"grid": {"sise": 3}}, "rich.grid: unknown key 'sise'; did you mean 'size'?"),
        ({"grid": {}}, "rich.grid.size is missing, and has no default"),
        ({"grid": 3}, "rich.grid is 3 of type int, expected Grid | None"),
        ({"grids": [{"size": 1}, 2]}, "rich.grids.1 is 2 of type int, expected Grid"),
        ({"skip": "residual_reuse"}, "rich.skip is the policy 'residual_reuse', a ResidualReuse; "),
    ],
    ids=str,
)
def test_what_a_record_refuses(options, message):
    with pytest.raises(ConfigError) as error:
        construct(Rich, options, where="rich")
    assert str(error.value).startswith(message)


def test_every_problem_is_told_at_once():
    with pytest.raises(ConfigError) as error:
        build_run({"polices": [], "steps": "many", "sigmas": [1, "x"]})
    assert str(error.value).startswith("configuration: unknown key 'polices'")
    assert error.value.__notes__ == [
        "also configuration.steps is 'many' of type str, expected int",
        "also configuration.sigmas.1 is 'x' of type str, expected float",
    ]
