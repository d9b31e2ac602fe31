"""A configuration asks for nothing: it reads no environment, runs nothing, and is bounded."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from omegaconf import OmegaConf

from erta_framework.config import build_policies, build_run, build_solver, load_config, options_from
from erta_framework.config._bounds import LIMITS
from erta_framework.config._yaml import DEEPEST, LONGEST_FILE, MOST_VALUES
from erta_framework.errors import ConfigError


@pytest.fixture
def read(tmp_path):
    """Reads YAML from a file."""

    def read(text, *overrides, **options):
        path = tmp_path / "run.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_config(path, overrides, **options)

    return read


def refusal(make, *arguments, **options):
    with pytest.raises(ConfigError) as error:
        make(*arguments, **options)
    assert len(str(error.value)) < 2000
    return str(error.value)


# ------------------------------------------------------------------------- environment
def test_the_environment_is_read_only_where_it_is_allowed(read, monkeypatch):
    monkeypatch.setenv("ERTA_SECRET", "hush")
    text = "output: runs/${oc.env:ERTA_SECRET}\n"
    said = refusal(read, text)
    assert "output is 'runs/${oc.env:ERTA_SECRET}'" in said
    assert "reads the environment variable ERTA_SECRET" in said
    assert "--allow-env" in said
    assert "hush" not in said
    assert read(text, allow_env=True).output == "runs/hush"
    assert "allow_env=True" in refusal(load_config, None, ["output=${oc.env:ERTA_SECRET}"])
    assert load_config(None, ["steps=${oc.env:N,7}"], allow_env=True).steps == 7
    said = refusal(load_config, None, ["steps=${oc.env:ERTA_NOWHERE}"], allow_env=True)
    assert "the environment has no ERTA_NOWHERE" in said


def test_what_a_variable_holds_is_not_read_again(read, monkeypatch):
    monkeypatch.setenv("ERTA_SLY", "${steps} ${oc.env:HOME} \\${x}")
    found = read("output: ${oc.env:ERTA_SLY}\n", allow_env=True).output
    assert found == "${steps} ${oc.env:HOME} \\${x}"


@pytest.mark.parametrize("allow_env", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        "${test.bomb:1}",
        "${oc.decode:'3'}",
        "${oc.create:x}",
        "${oc.select:steps}",
        "${oc.dict.keys:job}",
        "${oc.env:${output}}",
        "${oc.${seam}:HOME}",
        "${oc.deprecated:steps}",
        "${test.bomb:${test.bomb:1}}",
        "a ${test.bomb:} b",
    ],
)
def test_no_resolver_runs(read, text, allow_env):
    ran = []
    register = getattr(OmegaConf, "register_resolver", OmegaConf.register_new_resolver)
    register("test.bomb", lambda *x: ran.append(x), replace=True)
    try:
        said = refusal(read, f'output: "{text}"\n', allow_env=allow_env)
        assert said.startswith("cannot read the configuration: output is")
        assert "names a resolver" in said or "which cannot be read" in said
    finally:
        OmegaConf.clear_resolver("test.bomb")
    assert ran == []


# -------------------------------------------------------------------------- references
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("output: ${model}\nmodel: m", "m"),
        ("output: ${steps}/${seed}\nsteps: 3\nseed: 4", "3/4"),
        ("output: ${prompts.1}\nprompts: [a, b]", "b"),
        ("output: ${job.lease}\njob: {lease: 3}", "3"),
        ("output: ${model}\nmodel: ${seam}x\nseam: trunk", "trunkx"),
        ("output: '\\${steps}'", "${steps}"),
        ("output: 'a \\\\${seed} \\${b} $x {y}'\nseed: 5", "a \\5 ${b} $x {y}"),
    ],
)
def test_a_reference_stands_for_what_another_key_holds(read, text, expected):
    assert read(text).output == expected


def test_a_reference_keeps_the_type_of_what_it_leads_to(read):
    run = read("steps: ${seed}\nseed: 9\nsolver: {flow_euler: {shift: 2}}\n")
    assert run.steps == 9
    text = "prompts: [a, b]\njob: ${x}\n"
    assert "there is no 'x'" in refusal(read, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("output: ${output}", "leads back to itself"),
        ("output: ${model}\nmodel: a${output}", "leads back to itself: "),
        ("output: ${nowhere.x}", "there is no 'nowhere.x'"),
        ("output: ${prompts.7}\nprompts: [a]", "there is no 'prompts.7'"),
        ("output: x${prompts}\nprompts: [a]", "but prompts is a list"),
        ("output: x${job}\njob: {}", "but job is a mapping"),
        ("output: 'x${'", "cannot read"),
        ("output: '${}'", "cannot read"),
        ("output: '${.model}'", "from the top"),
        ("output: '${a b}'", "cannot read"),
    ],
)
def test_a_reference_that_leads_nowhere_says_so(read, text, message):
    assert message in refusal(read, text)


def test_references_cannot_grow_without_end(read):
    keys = "abcdefghijklmnopqrstuvwxyz"
    for form in ("{0}: ${{{1}}}${{{1}}}", "{0}: ['${{{1}}}', '${{{1}}}', '${{{1}}}']"):
        lines = [form.format(a, b) for a, b in pairwise(keys)]
        said = refusal(read, "\n".join([*lines, "z: " + "x" * 20]))
        assert "the most" in said
    chain = [f"k{i}: ${{k{i + 1}}}" for i in range(200)]
    assert f"more than {DEEPEST} references" in refusal(read, "\n".join([*chain, "k200: 1"]))
    parents = "\n".join(f"k{i}: {{a: '${{k{i + 1}}}'}}" for i in range(40))
    assert str(DEEPEST) in refusal(read, parents + "\nk40: 1")


# ------------------------------------------------------------------------------ sizes
def bomb(levels: int, width: int = 9) -> str:
    rows = ["k0: &k0 [x, x]"]
    rows += [f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(rows)


HUGE = {
    "aliases": bomb(30),
    "aliases in mappings": "k0: &k0 {x: 1}\n"
    + "\n".join(f"k{i + 1}: &k{i + 1} {{p: *k{i}, q: *k{i}}}" for i in range(20)),
    "merged aliases": "a: &a {x: [" + "1," * 3000 + "]}\nb: {<<: *a, y: *a}\nc: [*a, *a, *a]",
    "lists": "prompts: " + "[" * 100_000,
    "mappings": "a: " + "{a: " * 500,
    "block lists": "- " * 5000,
    "closed lists": "prompts: " + "[" * 500 + "]" * 500,
    "items": "prompts: [" + "x," * (MOST_VALUES + 1) + "]",
    "keys": "\n".join(f"k{i}: 1" for i in range(MOST_VALUES)),
    "references": "output: " + "${a}" * 200_000,
    "bytes": b"# " + b"x" * LONGEST_FILE,
}


@pytest.mark.parametrize("text", HUGE.values(), ids=HUGE)
def test_a_file_beyond_a_bound_names_it(read, text):
    said = refusal(read, text)
    assert "the most that" in said
    assert "run.yaml" in said


@pytest.mark.parametrize(
    "text", [v for k, v in HUGE.items() if k in ("lists", "mappings", "closed lists", "items")]
)
def test_an_override_is_bounded_as_well(text):
    assert "the most that" in refusal(load_config, None, [f"prompts={text.partition(': ')[2]}"])


def test_the_key_of_an_override_is_bounded():
    assert f"more than {DEEPEST} parts" in refusal(load_config, None, [".".join("a" * 50) + "=1"])
    assert "the most" in refusal(options_from, "--budget", ["calls=" + "[" * 60])


def test_values_from_python_are_bounded_too():
    cycle: dict = {}
    cycle["policies"] = [cycle]
    assert "levels deep" in refusal(build_run, cycle)
    assert "keys and values" in refusal(build_run, {"prompts": ["x"] * (MOST_VALUES + 1)})
    assert "has 101 items, the most are 100" in refusal(
        build_run, {"policies": ["skip_policy"] * 101}
    )


def test_a_file_that_is_no_text(read, tmp_path):
    assert "cannot read the configuration" in refusal(read, b"steps: \xff\xfe")
    assert "cannot read the configuration" in refusal(load_config, tmp_path)


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.system ['true']", "!!python/name:os.system"]
)
def test_tags_make_nothing(read, text):
    assert "cannot read" in refusal(read, f"output: {text}\n")


# ---------------------------------------------------------------------------- numbers
@pytest.mark.parametrize("key", ["steps", "seed", "batch_size", "devices"])
@pytest.mark.parametrize("value", [10**30, -(10**30), "1000000000000000000000"])
def test_a_whole_number_beyond_its_bound_names_key_value_and_bound(key, value):
    said = refusal(build_run, {key: value})
    assert said.startswith(f"configuration.{key} is ")
    least, most = LIMITS[key]
    assert str(value).strip("-") in said
    assert f"the most is {most}" in said or f"the least is {least}" in said


@pytest.mark.parametrize(
    ("values", "place", "bound"),
    [
        ({"steps": 10**9}, "configuration.steps is 1000000000", "the most is 10000"),
        ({"steps": 0}, "configuration.steps is 0", "the least is 1"),
        ({"seed": 2**63}, "configuration.seed is 9223372036854775808", "the most is 922337"),
        (
            {"solver": {"flow_euler": {"shift": 1e30}}},
            "configuration.solver.flow_euler.shift is 1e+30",
            "the most is 1000000",
        ),
        ({"solver": {"ddim": {"train_steps": 10**9}}}, "ddim.train_steps is 1000000000", "100000"),
        ({"solver": {"ddim": {"beta_end": 1e9}}}, "solver.ddim.beta_end is 1000000000.0", "is 1"),
        ({"solver": {"vp": {"beta_start": -1}}}, "solver.vp.beta_start is -1", "the least is 0"),
        ({"guidance": {"cfg": {"scale": 1e9}}}, "guidance.cfg.scale is 1000000000.0", "10000"),
        ({"fabric": {"devices": 10**9}}, "fabric.devices is 1000000000", "65536"),
        ({"fabric": {"num_nodes": 0}}, "fabric.num_nodes is 0", "the least is 1"),
        ({"job": {"batch_size": 10**9}}, "job.batch_size is 1000000000", "65536"),
        ({"job": {"lease": 1e300}}, "job.lease is 1e+300", "10000000"),
        (
            {"policies": [{"skip_policy": {"evenly": 10**9}}]},
            "configuration.policies.0.skip_policy.evenly is 1000000000",
            "the most is 1000000",
        ),
        (
            {"policies": [{"ertacache": {"profile": "x", "budget": {"calls": 10**9}}}]},
            "policies.0.ertacache.budget.calls is 1000000000",
            "the most is 10000",
        ),
        ({"sigmas": [1.0, 1e13]}, "configuration.sigmas.1 is 10000000000000.0", "the most is"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_numbers_that_would_fill_the_memory_or_never_end(values, place, bound):
    said = refusal(build_run, values)
    assert place in said
    assert bound in said


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "make",
    [
        lambda v: {"sigmas": [1.0, v, 0.0]},
        lambda v: {"solver": {"flow_euler": {"shift": v}}},
        lambda v: {"guidance": {"cfg": {"scale": v}}},
        lambda v: {"job": {"lease": v}},
        lambda v: {"policies": [{"easycache": {"threshold": v}}]},
    ],
)
def test_numbers_are_finite_however_they_are_written(make, value):
    assert "write a finite number" in refusal(build_run, make(value))
    spelled = refusal(build_run, make(str(value)))
    assert "finite" in spelled or "the most is" in spelled or "the least is" in spelled


def test_text_is_text_even_where_it_spells_a_number():
    run = build_run({"prompts": ["nan", "10000000000000000"], "output": "1e999", "model": "inf"})
    assert run.prompts == ("nan", "10000000000000000")


def test_numbers_at_their_bounds_are_taken():
    run = build_run({"steps": 10_000, "seed": 2**63 - 1, "batch_size": 65_536})
    assert (run.steps, run.seed, run.batch_size) == (10_000, 2**63 - 1, 65_536)
    assert build_run({"seed": -(2**63)}).seed == -(2**63)


@pytest.mark.parametrize("value", ["x" * 10**6, [["y" * 10**6]], {"z" * 10**6: 1}])
def test_a_message_never_repeats_a_huge_value(value):
    refusal(build_solver, value)
    if not isinstance(value, dict):
        refusal(build_policies, value)
    for values in (
        {"steps": value},
        {"job": value},
        {"policies": [{"skip_policy": {"evenly": value}}]},
    ):
        refusal(build_run, values)
