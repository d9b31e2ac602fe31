"""Profile files with damage in any place: a `ProfileError`, or a profile whose checks pass."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from erta_framework import Policy, Profile
from erta_framework.budgets import MeasuredFront
from erta_framework.errors import ErtaError, ProfileError
from erta_framework.testing import toy_profile
from erta_policies.ertacache import ReplayProfiler, ResidualProfiler, SkipPolicy, TimestepAdjuster
from erta_policies.fitted import FittedProfiler, FittedVelocity
from erta_policies.magcache import MagCache, MagCacheProfiler
from erta_policies.meancache import MeanCacheProfiler, MeanCacheSchedule
from erta_policies.planning import PlannedSchedule
from erta_policies.prompttea import (
    BranchSubstitute,
    CodebookProfiler,
    PromptTeaRule,
    RegressionProfiler,
)
from erta_policies.sencache import SenCache, SensitivityProfiler
from erta_policies.shared import RunProfiler
from erta_policies.teacache import TeaCacheProfiler, TeaCacheSchedule

UNIT = "planned_schedule reuse, gamma 1, signal max"

PROFILERS: dict[str, RunProfiler] = {
    "residual": ResidualProfiler(),
    "replay": ReplayProfiler(threshold=0.1),
    "magcache": MagCacheProfiler(),
    "teacache": TeaCacheProfiler(signal="latents"),
    "meancache": MeanCacheProfiler(),
    "regression": RegressionProfiler(signal="latents"),
    "codebook": CodebookProfiler(),
    "fitted": FittedProfiler(),
    "sensitivity": SensitivityProfiler(),
}
READERS: dict[str, tuple[Callable[[Path], Policy], ...]] = {
    "residual": (
        lambda path: SkipPolicy(profile=path, calls=4),
        lambda path: TimestepAdjuster(profile=path),
        lambda path: PlannedSchedule(profile=path, budget={"calls": 4}, cost="forecast"),
        lambda path: PlannedSchedule(profile=path, budget={"psnr": 21.0}, gamma=1.0),
    ),
    "replay": (lambda path: SkipPolicy(profile=path),),
    "magcache": (lambda path: MagCache(profile=path, threshold=0.1),),
    "teacache": (lambda path: TeaCacheSchedule(profile=path, threshold=0.1),),
    "meancache": (lambda path: MeanCacheSchedule(profile=path, calls=4),),
    "regression": (lambda path: PromptTeaRule(profile=path, threshold=0.1),),
    "codebook": (lambda path: BranchSubstitute(profile=path, threshold=0.1),),
    "fitted": (lambda path: FittedVelocity(profile=path),),
    "sensitivity": (lambda path: SenCache(profile=path),),
}


@cache
def base(name: str) -> Profile:
    """A sound profile of the toy; that of residuals holds a measured front as well."""
    profile = toy_profile(PROFILERS[name], seeds=(11,))
    if name != "residual":
        return profile
    return MeasuredFront(
        steps=((0, 5, 9), (0, 3, 6, 9)),
        refined=((0, 5, 9), (0, 3, 6, 9)),
        predicted=(0.2, 0.1),
        psnr=(20.0, 25.0),
        psnr_std=(1.0, 1.0),
        refined_psnr=(20.0, 25.0),
        seconds=(0.3, 0.4, 1.0),
        batch=2,
        device="a device",
        planner="planned_schedule",
        policies="planned_schedule",
        spent=17,
        unit=UNIT,
    ).added_to(profile)


# ------------------------------------------------------------------------------ damaged bytes
def damage(data: bytes, chance: random.Random) -> bytes:
    """The bytes of a file after some accident, or some cunning."""
    length = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + length], data[8 + length :]
    kind = chance.randrange(8)
    if kind == 0:  # flipped bits
        changed = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 16))):
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        return bytes(changed)
    if kind == 1:
        return data[: chance.randrange(len(data))]
    if kind == 2:
        return data + chance.randbytes(chance.randrange(1, 64))
    if kind == 3:  # another length of the header
        other = chance.choice((0, 1, length - 1, length + 1, len(data), 1 << 40, (1 << 64) - 1))
        return other.to_bytes(8, "little") + data[8:]
    if kind == 4:  # a flipped bit in the header, whose length stays
        changed = bytearray(header)
        changed[chance.randrange(length)] ^= 1 << chance.randrange(8)
        return data[:8] + bytes(changed) + body
    if kind == 5:  # a part of the file moved
        start, end = sorted(chance.randrange(len(data)) for _ in range(2))
        return data[:start] + data[end:] + data[start:end]
    held = json.loads(header)
    edit_header(held, chance)
    text = json.dumps(held).encode()
    return len(text).to_bytes(8, "little") + text + body


ODD: tuple[object, ...] = (
    *(None, True, -1, 0, 3.5, 1 << 70, "", "x", "\ud800"[:0], [], {}, [[]], [-1, 4], [0, 1 << 62]),
    *("F64", "F32", "BF16", "F8_E8M0", "U8", "BOOL", "C64", "[" * 5000, '{"a": ' * 5000, "NaN"),
)


def edit_header(held: dict[str, object], chance: random.Random) -> None:
    """Change one place of the header's JSON."""
    names = [name for name in held if name != "__metadata__"]
    one, other = chance.choice(names), chance.choice(names)
    kind = chance.randrange(6)
    if kind == 0:
        held[one], held[other] = held[other], held[one]
    elif kind == 1:
        del held[one]
    elif kind == 2:
        held[f"{one}?"] = held[one]
    elif kind == 3:
        held[one] = chance.choice(ODD)
    elif kind == 4:
        entry = held[one]
        assert isinstance(entry, dict)
        entry[chance.choice(("dtype", "shape", "data_offsets", "more"))] = chance.choice(ODD)
    else:
        metadata = held["__metadata__"]
        assert isinstance(metadata, dict)
        key = chance.choice((*metadata, "more"))
        metadata[key] = chance.choice((*ODD, *metadata.values()))


def check_damaged_files(name: str, folder: Path, chance: random.Random, count: int) -> None:
    """Damaged bytes are refused; a file that is read is the one that was written."""
    sound, path = base(name), folder / "p.safetensors"
    data = sound.save(path).read_bytes()
    refused = 0
    for _ in range(count):
        path.write_bytes(damage(data, chance))
        try:
            loaded = Profile.load(path)
        except ProfileError:
            refused += 1
            continue
        # only the provenance is not in the digest
        assert loaded.digest == sound.digest
        PROFILERS[name].kind.check(loaded)
    assert refused > count / 2


# ------------------------------------------------------------------- edited, and signed again
def edit(profile: Profile, chance: random.Random) -> Profile:
    """A profile with wrong contents, whose digest somebody made anew."""
    held = dict(profile.statistics)
    one, other = chance.choice(sorted(held)), chance.choice(sorted(held))
    kind = chance.randrange(8)
    if kind == 0:
        held[one], held[other] = held[other], held[one]
    elif kind == 1:
        del held[one]
    elif kind == 2:
        held[one] = reshape(held[one], chance)
    elif kind == 3:
        types = (torch.float32, torch.int64, torch.bool, torch.bfloat16, torch.complex64)
        held[one] = held[one].to(chance.choice(types))
    elif kind in (4, 5):
        held[one] = disturb(held[one], chance)
    elif kind == 6:
        facts = dict(profile.fingerprint)
        key = chance.choice((*facts, "more"))
        words = ("", "0", "-1", "3", "1e3", "9" * 400, "cond,uncond", ",", "nothing", "²")
        facts[key] = chance.choice((*words, *facts.values()))
        if chance.random() < 0.2:
            del facts[key]
        return replace(profile, fingerprint=facts)
    else:
        kinds = [each.kind.name for each in PROFILERS.values()]
        facts = {key: chance.choice(("", "x", "-1")) for key in profile.provenance}
        samples = chance.choice((1, 7, 10**9))
        return replace(profile, kind=chance.choice(kinds), samples=samples, provenance=facts)
    return replace(profile, statistics=held)


def reshape(value: Tensor, chance: random.Random) -> Tensor:
    """The tensor with another shape."""
    forms: list[Callable[[Tensor], Tensor]] = [
        lambda v: v.flatten(),
        lambda v: v.unsqueeze(0),
        lambda v: v.new_zeros(0),
        lambda v: v.new_ones(()),
        lambda v: v.new_ones(3, 0, 2),
        lambda v: torch.cat([v.flatten(), v.flatten()]),
        lambda v: v.movedim(-1, 0) if v.ndim else v,
        lambda v: v[..., :-1] if v.ndim else v,
    ]
    return chance.choice(forms)(value)


def disturb(value: Tensor, chance: random.Random) -> Tensor:
    """The tensor with other values in one place or in all of them."""
    flat = value.clone().flatten()
    odd = chance.choice((float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 0.5, 1e300, 5e-324))
    if not flat.dtype.is_floating_point:
        odd = chance.choice((0, 1, 2, 255))
    if chance.random() < 0.3:
        flat[:] = odd
    else:
        flat[chance.randrange(len(flat))] = odd
    return flat.reshape(value.shape)


def check_edited_profiles(name: str, folder: Path, chance: random.Random, count: int) -> None:
    """What is signed again is refused with an error of ours, or serves whoever reads it."""
    sound, path, kind = base(name), folder / "p.safetensors", PROFILERS[name].kind
    refused = 0
    for _ in range(count):
        loaded = Profile.load(edit(sound, chance).save(path))
        try:
            if loaded.kind == kind.name:
                kind.check(loaded)
        except ProfileError:
            refused += 1
        for make in READERS[name]:
            try:
                make(path).prepare()
            except ErtaError:  # also a `PolicyError`: the profile is another signal's, say
                refused += 1
    assert refused > count / 2


@pytest.mark.parametrize("name", PROFILERS)
def test_damaged_files(
    name: str, tmp_path: Path, rng: random.Random, examples: Callable[[int], int]
) -> None:
    check_damaged_files(name, tmp_path, rng, examples(180))


@pytest.mark.parametrize("name", PROFILERS)
def test_edited_profiles(
    name: str, tmp_path: Path, rng: random.Random, examples: Callable[[int], int]
) -> None:
    check_edited_profiles(name, tmp_path, rng, examples(60))


class Planted:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.target,)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    target, path = tmp_path / "executed", tmp_path / "p.safetensors"
    torch.save({"a": Planted(target)}, path)
    with pytest.raises(ProfileError):
        Profile.load(path)
    assert not target.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", PROFILERS)
def test_many_more_files(
    name: str, tmp_path: Path, rng: random.Random, examples: Callable[[int], int]
) -> None:
    check_damaged_files(name, tmp_path, rng, examples(3600))
    check_edited_profiles(name, tmp_path, rng, examples(1200))


@pytest.mark.parametrize("name", PROFILERS)
def test_the_profiles_that_are_damaged_are_sound(name: str, tmp_path: Path) -> None:
    path = base(name).save(tmp_path / "p.safetensors")
    PROFILERS[name].kind.check(Profile.load(path))
    for make in READERS[name]:
        make(path).prepare()
