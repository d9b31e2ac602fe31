"""Profiles: one file, checked when it is read, refused where it does not fit."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from erta_framework import CFG, Engine, FlowEuler, Profile, Sampler
from erta_framework.calibration import make_fingerprint
from erta_framework.errors import PolicyError, ProfileError, ProfileMismatchError
from erta_policies.ertacache import ResidualProfiler, SkipPolicy


def make(samples=3, **changes):
    generator = torch.Generator().manual_seed(samples)
    values = {
        "kind": "toy",
        "fingerprint": {"solver": "Euler", "num_steps": "4"},
        "statistics": {
            "sums": torch.rand(2, 4, generator=generator, dtype=torch.float64),
            "count": torch.tensor(float(samples)),
            "half": torch.rand(3, generator=generator).bfloat16(),
        },
        "samples": samples,
        "provenance": {"seeds": f"0..{samples - 1}"},
    }
    return Profile(**{**values, **changes})


def rewrite(path, tensors=None, **metadata):
    """Change a file as somebody with an editor would."""
    with safe_open(path, framework="pt") as file:
        old = dict(file.metadata())
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file({**kept, **(tensors or {})}, path, metadata={**old, **metadata})


# ------------------------------------------------------------------------- round trip
def test_round_trip(tmp_path):
    profile = make()
    path = profile.save(tmp_path / "deep" / "folder" / "toy.safetensors")
    loaded = Profile.load(path)
    assert loaded.kind == profile.kind
    assert loaded.samples == profile.samples
    assert loaded.fingerprint == profile.fingerprint
    assert loaded.provenance == profile.provenance
    assert loaded.digest == profile.digest
    assert set(loaded.statistics) == set(profile.statistics)
    for name, tensor in profile.statistics.items():
        assert loaded.statistics[name].dtype == tensor.dtype
        assert torch.equal(loaded.statistics[name], tensor)
    assert repr(loaded) == f"<Profile toy {profile.digest[:8]}, 3 samples>"


def test_statistics_that_share_memory_or_are_strided(tmp_path):
    table = torch.arange(12.0).reshape(3, 4)
    profile = make(statistics={"a": table, "b": table, "c": table.T, "d": table[:, 1]})
    loaded = Profile.load(profile.save(tmp_path / "p.safetensors"))
    assert torch.equal(loaded.statistics["c"], table.T)
    assert torch.equal(loaded.statistics["d"], table[:, 1])
    assert loaded.digest == profile.digest


def test_digest_covers_everything_but_the_provenance():
    profile = make()
    assert profile.with_provenance(date="today").digest == profile.digest
    statistics = dict(profile.statistics)
    statistics["sums"] = statistics["sums"].clone()
    statistics["sums"][0, 0] += 1e-12
    others = [
        replace(profile, kind="other"),
        replace(profile, samples=4),
        replace(profile, fingerprint={"solver": "Euler", "num_steps": "5"}),
        replace(profile, statistics=statistics),
        replace(profile, statistics={"s": profile.statistics["sums"]}),
    ]
    digests = {profile.digest, *(other.digest for other in others)}
    assert len(digests) == 6


# ------------------------------------------------------------------------- broken files
def test_missing_file(tmp_path):
    with pytest.raises(ProfileError, match=r"no profile at .*gone.*erta calibrate"):
        Profile.load(tmp_path / "gone.safetensors")
    with pytest.raises(ProfileError, match="no profile at"):
        Profile.load(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_file(tmp_path, keep):
    path = make().save(tmp_path / "p.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ProfileError, match=r"not a readable safetensors file.*truncated"):
        Profile.load(path)


def test_text_instead_of_a_profile(tmp_path):
    path = tmp_path / "p.safetensors"
    path.write_text("phi: 0.9\n" * 20)
    with pytest.raises(ProfileError, match="not a readable safetensors file"):
        Profile.load(path)


def test_safetensors_of_something_else(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ProfileError, match=r"schema None.*it is no profile"):
        Profile.load(path)


def test_another_schema(tmp_path):
    path = make().save(tmp_path / "p.safetensors")
    rewrite(path, schema="erta_framework.profile/99")
    with pytest.raises(ProfileError, match=r"profile/99.*this version reads .*profile/1"):
        Profile.load(path)


def test_tampered_tensor_bytes(tmp_path):
    path = make().save(tmp_path / "p.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ProfileError, match=r"changed after it was written: digest .* stored"):
        Profile.load(path)


@pytest.mark.parametrize(
    "metadata",
    [
        {"kind": "other"},
        {"samples": "300"},
        {"fingerprint": json.dumps({"solver": "Euler", "num_steps": "50"})},
        {"digest": "0" * 32},
    ],
    ids=lambda value: next(iter(value)),
)
def test_tampered_metadata(tmp_path, metadata):
    path = make().save(tmp_path / "p.safetensors")
    rewrite(path, **metadata)
    with pytest.raises(ProfileError, match="changed after it was written"):
        Profile.load(path)


def test_added_tensor(tmp_path):
    path = make().save(tmp_path / "p.safetensors")
    rewrite(path, tensors={"extra": torch.ones(1)})
    with pytest.raises(ProfileError, match="changed after it was written"):
        Profile.load(path)


@pytest.mark.parametrize(
    "metadata",
    [
        {"samples": "many"},
        {"samples": "0"},
        {"samples": "-3"},
        {"samples": "1_0"},
        {"samples": "9" * 5000},
        {"fingerprint": "not json"},
        {"fingerprint": "[1, 2]"},
        {"fingerprint": "3"},
        {"fingerprint": '{"num_steps": 4}'},
        {"provenance": "null"},
        {"provenance": '{"a": "b", "a": "c"}'},
    ],
    ids=lambda metadata: str(metadata)[:40],
)
def test_broken_metadata(tmp_path, metadata):
    path = make().save(tmp_path / "p.safetensors")
    rewrite(path, **metadata)
    with pytest.raises(ProfileError, match="broken metadata"):
        Profile.load(path)


def raw(path, header, data=b""):
    """A file with this header, which is JSON or bytes, and these bytes behind it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


BOMB = "[" * 200_000 + "]" * 200_000
META = {"schema": "erta_framework.profile/1"}
FLOAT = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
ATTACKS = {
    "a huge header": ({"__metadata__": {**META, "x": "y" * (2 << 20)}}, b"", "at most 1048576"),
    "a nested header": (b'{"x": ' + BOMB.encode() + b"}", b"", "nested 200001 deep, at most 8"),
    "nested metadata": ({"__metadata__": {"x": [[1]]}}, b"", "no mapping of tensors"),
    "overlapping offsets": (
        {"__metadata__": META, "a": FLOAT, "b": FLOAT},
        b"1234",
        "not a readable safetensors file",
    ),
    "a hole": (
        {"__metadata__": META, "a": {**FLOAT, "data_offsets": [4, 8]}},
        b"12345678",
        "not a readable safetensors file",
    ),
    "bytes behind the tensors": (
        {"__metadata__": META, "a": FLOAT},
        b"12345678",
        "not a readable safetensors file",
    ),
    "an impossible shape": (
        {"__metadata__": META, "a": {**FLOAT, "shape": [1 << 62, 1 << 62]}},
        b"1234",
        "not a readable safetensors file",
    ),
    "an unknown type": (
        {"__metadata__": META, "a": {**FLOAT, "dtype": "F8_E8M0", "data_offsets": [0, 1]}},
        b"1",
        "not a readable safetensors file",
    ),
    "a name twice": (
        b'{"__metadata__":{"schema":"erta_framework.profile/1"},"a":1,"a":1}',
        b"",
        "a key of its JSON is there twice",
    ),
    "a list": ([], b"", "no mapping of tensors"),
    "no text": (b"\xff\xfe{}", b"", "not a readable safetensors file"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_headers(tmp_path, attack):
    header, data, message = ATTACKS[attack]
    raw(tmp_path / "p.safetensors", header, data)
    with pytest.raises(ProfileError, match=message):
        Profile.load(tmp_path / "p.safetensors")


def test_a_header_longer_than_the_file_is_not_read(tmp_path):
    path = tmp_path / "p.safetensors"
    path.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(ProfileError, match=r"its header ends at byte \d+, the file at 10"):
        Profile.load(path)


@pytest.mark.parametrize("field", ["fingerprint", "provenance"])
def test_nesting_bombs_in_metadata(tmp_path, field):
    path = make().save(tmp_path / "p.safetensors")
    rewrite(path, **{field: "[" * 100_000 + "]" * 100_000})
    with pytest.raises(ProfileError, match=r"broken metadata .*nested 100000 deep, at most 8"):
        Profile.load(path)


def test_a_loaded_profile_does_not_follow_its_file(tmp_path):
    path = make().save(tmp_path / "p.safetensors")
    loaded = Profile.load(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert loaded.digest == make().digest


# ---------------------------------------------------------------------------- writing
def test_a_link_in_place_of_the_partial_file_is_not_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr("erta_framework.files.secrets.token_hex", lambda _: "00")
    planted = tmp_path / f".p.safetensors.{os.getpid()}-00.partial"
    planted.symlink_to(victim)
    make().save(tmp_path / "p.safetensors")
    assert victim.read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["p.safetensors", "victim"]


def test_a_long_name_leaves_room_for_the_partial_file(tmp_path):
    path = make().save(tmp_path / ("\u00fc" * 120 + ".safetensors"))
    assert Profile.load(path).samples == 3


def test_nothing_else_is_left_beside_the_file(tmp_path):
    make().save(tmp_path / "p.safetensors")
    make(samples=4).save(tmp_path / "p.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]
    assert Profile.load(tmp_path / "p.safetensors").samples == 4


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_failing_write_keeps_the_old_file(tmp_path, monkeypatch, failing):
    path = make().save(tmp_path / "p.safetensors")
    before = path.read_bytes()

    def refused(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, failing, refused)
    with pytest.raises(OSError, match="disk full"):
        make(samples=9).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["p.safetensors"]


# --------------------------------------------------------------------------- matching
FIELDS = {
    "model.class": {"model": {"class": "Other"}},
    "solver": {"solver": "Heun()"},
    "sigma_grid": {"times": (1000.0, 750.0, 500.0, 251.0)},
    "guidance": {"guidance": "CFG(scale=9.0)"},
    "branches": {"branches": ("cond", "uncond")},
    "latent_shape": {"shape": (1, 2, 5)},
    "dtype": {"dtype": torch.bfloat16},
}


def test_fitting_run_is_accepted(info):
    run = info(model={"class": "Toy"})
    profile = make(fingerprint=make_fingerprint(run))
    profile.require(run)
    # the batch does not matter
    other = info(model={"class": "Toy"}, shape=(7, 2, 3))
    assert make_fingerprint(other) == dict(profile.fingerprint)
    profile.require(other)


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_that_differs_is_named(info, name):
    facts = {"model": {"class": "Toy"}, "solver": "Euler()", "guidance": "none"}
    profile = make(fingerprint=make_fingerprint(info(**facts)))
    run = info(**{**facts, **FIELDS[name]})
    with pytest.raises(ProfileMismatchError) as error:
        profile.require(run)
    lines = [line for line in str(error.value).splitlines() if line.startswith("  ")]
    ours, theirs = profile.fingerprint[name], make_fingerprint(run)[name]
    assert ours != theirs
    assert lines == [f"  {name}: profile {ours!r} / run {theirs!r}"]
    assert "allow=[...]" in str(error.value)
    profile.require(run, allow={name})


def test_other_number_of_steps(info):
    profile = make(fingerprint=make_fingerprint(info(steps=4)))
    with pytest.raises(ProfileMismatchError, match="num_steps: profile '4' / run '8'"):
        profile.require(info(steps=8))
    with pytest.raises(ProfileMismatchError, match="sigma_grid"):
        profile.require(info(steps=8), allow=["num_steps"])
    profile.require(info(steps=8), allow=["num_steps", "sigma_grid"])


def test_field_that_only_one_side_has(info):
    profile = make(fingerprint={**make_fingerprint(info()), "model.revision": "a"})
    with pytest.raises(ProfileMismatchError, match=r"model\.revision: profile 'a' / run 'nothing'"):
        profile.require(info())


def test_kind(info):
    make().require_kind("toy", "SkipPolicy")
    with pytest.raises(ProfileError, match=r"SkipPolicy needs a profile of kind 'x', got .*'toy'"):
        make().require_kind("x", "SkipPolicy")


# ---------------------------------------------------------------------------- merging
def test_merging_adds():
    profiles = [make(samples=k) for k in (1, 2, 3)]
    merged = Profile.merge(profiles)
    assert merged.samples == 6
    for name in ("sums", "count"):
        expected = sum(profile.statistics[name] for profile in profiles)
        torch.testing.assert_close(merged.statistics[name], expected)
    assert merged.statistics["count"] == 6.0
    assert merged.provenance == {"seeds": "0..0; 0..1; 0..2"}
    assert Profile.merge(profiles[:1]).digest == profiles[0].digest


def test_nothing_to_merge():
    with pytest.raises(ProfileError, match="nothing to merge"):
        Profile.merge([])


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"fingerprint": {"solver": "Heun", "num_steps": "4"}},
            "solver: first 'Euler' / number 2 'Heun'",
        ),
        ({"fingerprint": {"solver": "Euler"}}, "num_steps: first '4' / number 2 'nothing'"),
        ({"kind": "other"}, "kind: first 'toy' / number 2 'other'"),
        ({"statistics": {"sums": torch.ones(1)}}, "statistics: first"),
        ({"statistics": {**make().statistics, "count": torch.tensor(1)}}, "statistics: first"),
    ],
    ids=["field", "missing field", "kind", "statistics", "dtype"],
)
def test_unlike_profiles_are_not_merged(changes, line):
    with pytest.raises(ProfileMismatchError) as error:
        Profile.merge([make(), make(**changes)])
    assert line in str(error.value)
    assert len([row for row in str(error.value).splitlines() if row.startswith("  ")]) == 1


def test_profile_of_two_batches_is_that_of_one(new_net):
    prompts = ["a", "bbb", "cc", "dddd"]

    def calibrated(batch_size):
        sampler = Sampler(
            [ResidualProfiler()],
            num_steps=5,
            guidance=CFG(),
            solver=FlowEuler(),
            accelerator="cpu",
            batch_size=batch_size,
        )
        return sampler.sample(new_net(), prompts).emitted

    (one,) = calibrated(4)
    several = Profile.merge(calibrated(1))
    assert one.samples == several.samples == 4
    assert one.fingerprint == several.fingerprint
    for name, tensor in one.statistics.items():
        torch.testing.assert_close(several.statistics[name], tensor, msg=name)


def test_profile_is_checked_before_the_first_network_call(run, tmp_path):
    (profile,) = run([ResidualProfiler()], steps=6).result.emitted
    path = profile.save(tmp_path / "p.safetensors")
    policy = SkipPolicy(profile=path, calls=4)
    assert run([policy], steps=6).network.calls == 4
    with pytest.raises(ProfileMismatchError, match="num_steps: profile '6' / run '7'"):
        run([policy], steps=7, network=lambda *_: pytest.fail("the network ran"))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ProfileError, match="truncated"):
        Engine([SkipPolicy(profile=path, calls=4)])
    with pytest.raises((PolicyError, ProfileError), match="erta calibrate"):
        Engine([SkipPolicy(profile=tmp_path / "gone", calls=4)])
