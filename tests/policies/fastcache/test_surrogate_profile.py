"""The profile of surrogates: its sums are those of hooks on an untouched network."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace

import pytest
import torch

from erta_framework import Profile
from erta_framework.errors import CapabilityError, PolicyError, ProfileError
from erta_framework.modules import Place, Select
from erta_framework.testing import BlockFlow
from erta_policies.shared import (
    ResidualReuse,
    Seen,
    SurrogateProfiler,
    SurrogateTable,
    find_bucket,
)
from module_plans import STEPS, request, sample

PATHS = [f"blocks.{k}" for k in range(3)]


def make_profile(batch=2, **settings):
    (made,) = sample(SurrogateProfiler(**settings), given=request(batch)).emitted
    return made


def watch():
    """Inputs and outputs of the blocks in an untouched run, `[path][branch] -> steps`."""
    network, found = BlockFlow(), defaultdict(list)
    for path in PATHS:

        def hook(module, args, output, path=path):
            found[path].append((args[0].double(), output.double()))

        network.get_submodule(path).register_forward_hook(hook)
    sample(network=network)
    return {path: [steps[0::2], steps[1::2]] for path, steps in found.items()}


SEEN = watch()


def pairs(path, branch, longest, bucket=None, buckets=1):
    steps = SEEN[path][branch]
    for k in range(STEPS):
        for apart in range(1, min(longest, k) + 1):
            if bucket is None or find_bucket(k, STEPS, buckets) == bucket:
                yield steps[k - apart], steps[k]


@pytest.mark.parametrize("longest", [1, 3])
@pytest.mark.parametrize("buckets", [1, 3])
def test_the_sums_are_those_of_hooks(longest, buckets):
    found = make_profile(longest=longest, buckets=buckets).statistics
    for branch in range(2):
        for row, path in enumerate(PATHS):
            for bucket in range(buckets):
                gram, cross, xy, number = torch.zeros(8, 8), torch.zeros(8, 8), torch.zeros(8), 0
                for (x0, y0), (x1, y1) in pairs(path, branch, longest, bucket, buckets):
                    moved, stale, fresh = (x1 - x0).flatten(0, 1), y0 - x0, y1 - x1
                    gram = gram + moved.mT @ moved
                    cross = cross + moved.mT @ (fresh - stale).flatten(0, 1)
                    xy = xy + (stale * fresh).sum(dim=(0, 1))
                    number += moved.shape[0]
                place = (branch, row, bucket)
                assert torch.allclose(found["gram.0"][place], gram.double(), rtol=1e-4, atol=1e-6)
                assert torch.allclose(found["cross.0"][place], cross.double(), rtol=1e-3, atol=1e-5)
                assert torch.allclose(found["xy.0"][place], xy.double(), rtol=1e-4, atol=1e-5)
                assert found["pairs.0"][place] == number


def test_profiles_merge_and_survive_a_file(tmp_path):
    one = make_profile()
    both = Profile.merge([one, one])
    table, other = (SurrogateTable(p, "ridge", 1e-3, None) for p in (one, both))
    a, b = (t.find("blocks.1", 0, 3, STEPS).fit.matrix for t in (table, other))
    assert torch.allclose(a, b)  # twice the same samples fit the same
    both.save(tmp_path / "p.safetensors")
    again = SurrogateTable(Profile.load(tmp_path / "p.safetensors"), "ridge", 1e-3, None)
    assert torch.equal(again.find("blocks.1", 0, 3, STEPS).fit.matrix, b)


def test_profiles_of_other_pairs_do_not_merge():
    with pytest.raises(ProfileError, match="longest"):
        Profile.merge([make_profile(longest=1), make_profile(longest=2)])


def test_a_fit_explains_changes_better_than_residual_reuse():
    """On the samples that it was fitted to, at every distance: the fit has the smallest error."""
    profile = make_profile()
    errors = dict.fromkeys(("residual", "affine", "ridge"), 0.0)
    for name in errors:
        table = SurrogateTable(profile, name, 1e-6, None)
        for path in PATHS:
            surrogate = table.find(path, 0, 0, STEPS)
            for (x0, y0), (x1, y1) in (p for b in range(2) for p in pairs(path, b, 3)):
                made = surrogate(x1.float(), x0.float(), (y0 - x0).float())
                errors[name] += float((made - y1).square().sum())
    assert errors["ridge"] < errors["residual"]
    assert errors["affine"] < errors["residual"]


def test_a_bucket_in_which_nothing_was_summed_is_residual_reuse():
    table = SurrogateTable(make_profile(buckets=STEPS), "ridge", 1e-3, None)
    first = table.find("blocks.0", 0, 0, STEPS)
    assert not first.fit.matrix.any()
    assert table.find("blocks.0", 0, 1, STEPS).fit.matrix.any()


def test_innovations_are_the_quantiles_of_movement():
    table = SurrogateTable(make_profile(), "residual", 1e-3, None)
    for path in PATHS:
        moves = sorted(
            float((x1 - x0)[row].square().mean())
            for branch in range(2)
            for (x0, _), (x1, _) in pairs(path, branch, 1)
            for row in range(2)
        )
        for quantile in (0.1, 0.5, 0.9):
            exact = moves[math.ceil(quantile * len(moves)) - 1]
            assert table.find_innovation(path, 0, quantile) == pytest.approx(exact, rel=0.13)


def test_residual_reuse_needs_no_profile():
    found = SurrogateTable(None, "residual", 1e-3, None).find("anything", 0, 0, STEPS)
    assert isinstance(found, ResidualReuse)


def test_blocks_and_streams_that_were_not_watched_are_refused():
    table = SurrogateTable(
        make_profile(blocks=Select(kind=("block",), depth="1:")), "ridge", 1e-3, None
    )
    with pytest.raises(ProfileError, match=r"no sums of blocks\.0, it has those of blocks\.1"):
        table.find("blocks.0", 0, 0, STEPS)
    with pytest.raises(ProfileError, match=r"no 'gram\.1', so its blocks had fewer streams"):
        table.find("blocks.1", 1, 0, STEPS)


def test_sums_that_no_run_gives_are_refused():
    profile = make_profile()
    gram = torch.full_like(profile.statistics["gram.0"], 1e308)
    broken = replace(profile, statistics={**profile.statistics, "gram.0": gram})
    with pytest.raises(ProfileError, match="calibrate again"):
        SurrogateTable(broken, "ridge", 1e-3, None).find("blocks.0", 0, 0, STEPS)


def test_three_streams_are_refused():
    x = torch.zeros(1, 2, 3)
    seen = Seen(Place("b", "block", 0), 1, 0.5, 1, (x, x, x), (x, x, x))
    with pytest.raises(CapabilityError, match="b has 3 streams"):
        SurrogateProfiler().measure(seen, [])


@pytest.mark.parametrize(
    "setting", [{"buckets": 0}, {"longest": 0}, {"blocks": Select(kind=("mlp",))}]
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(PolicyError, match=r"SurrogateProfiler"):
        SurrogateProfiler(**setting)
