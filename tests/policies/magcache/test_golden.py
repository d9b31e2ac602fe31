"""Schedules from the published tables, against what the authors report."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from erta_framework.errors import PolicyError
from erta_policies.constants import models, read_published
from erta_policies.magcache import MagCache
from erta_policies.magcache._rule import nearest, resample_ratios

TEN = tuple(range(10))
# model, options, steps, computed steps of the first branch, the reported speed-up
ROWS = [
    ("flux.1-dev", {}, 28, 9, 14.26 / 5.05),
    ("flux.1-kontext-dev", {}, 28, 14, 30 / 15),
    ("hunyuanvideo-720p", {}, 50, 22, 54.08 / 23.83),
    ("wan2.1-t2v-14b", {}, 50, 18, 60.07 / 21.67),
    ("wan2.1-vace-1.3b", {}, 50, 29, 1.7),
    ("wan2.2-ti2v-5b-t2v", {}, 50, 25, 10.65 / 5.4),
    ("wan2.2-t2v-a14b", {"high_steps": 26}, 40, 26, 27.15 / 18.17),
    ("framepack", {}, 25, 12, 9 / 4.33),
    ("framepack-f1", {}, 25, 12, 9 / 4.33),
    ("comfyui-hunyuanvideo-1.5", {}, 20, 12, 1.7),
]
# the same, where the published table and rule do not give the reported figure
OTHER = [
    ("hunyuanvideo-720p", {"threshold": 0.24, "max_skips": 6}, 50, 19, 54.08 / 19.55),
    ("wan2.1-t2v-1.3b", {"max_skips": 2}, 50, 25, 189 / 87),
    ("wan2.1-t2v-1.3b", {"max_skips": 4}, 50, 21, 189 / 68),
    ("wan2.1-i2v-14b-720p", {}, 40, 14, 30.67 / 10.05),
    ("qwen-image", {}, 50, 37, 75 / 50),
    ("qwen-image-edit", {}, 50, 35, 120 / 80),
    ("open-sora-1.2", {}, 30, 12, 44.56 / 21.21),
]


@pytest.mark.parametrize(
    ("skips", "root", "strict", "later"),
    [
        (2, True, False, (12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 42, 45, 47, 49)),
        (4, True, False, (14, 19, 24, 29, 34, 39, 43, 46, 48)),
        (2, False, True, (12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 42, 44, 46, 48, 49)),
        (4, False, True, (14, 19, 24, 29, 34, 38, 41, 44, 46, 48, 49)),
    ],
)
def test_the_schedules_of_wan_2_1_1_3b(
    skips: int, root: bool, strict: bool, later: tuple[int, ...]
) -> None:
    """Table of MagCache4Wan2.1/magcache_generate.py at threshold 0.12 and retention 0.2.

    With the square root, as in the paper's evaluation, 24 and 19 of 50 computed steps are the
    FLOPs of arXiv 2506.09045, Table 1: 3.94 and 3.11 of 8.21. The sets were worked out by hand
    from the table and the published step list.
    """
    policy = MagCache(model="wan2.1-t2v-1.3b", max_skips=skips, square_root=root, strict=strict)
    for plan in policy.plans(50).values():
        assert plan.computed == TEN + later
    if root:
        flops = {2: 3.94, 4: 3.11}[skips] / 8.21
        assert len(policy.plan(50).computed) / 50 == pytest.approx(flops, abs=0.005)


def test_the_flops_of_flux_at_28_steps() -> None:
    """arXiv 2506.09045, Table 1: 0.53 of 1.66 PFLOPs for the fast mode; 9 of 28 steps."""
    computed = MagCache(model="flux.1-dev").plan(28).computed
    assert len(computed) / 28 == pytest.approx(0.53 / 1.66, abs=0.005)


def literal(model: str, high: int | None) -> dict[str, list[int]]:
    """The published loops, one count of calls and one set of sums a branch, written down plainly.

    Source: MagCache4Wan2.1, MagCache4Wan2.2, MagCache4FLUX, MagCache4HunyuanVideo and
    MagCache4FramePack, as far as their conditions differ.
    """
    given = read_published("magcache", model)
    tables, steps, ret = given["tables"], given["steps"], given["retention"]
    many = len(tables) if given["interleaved"] else 1
    computed: dict[str, list[int]] = {name: [] for name in tables}
    for place, (name, table) in enumerate(tables.items()):
        ratio, err, run = 1.0, 0.0, 0
        for i in range(steps):
            cnt, num = many * i + place % many, many * steps
            if "experts" in given:
                assert high is not None
                split = many * high
                if given["experts"] == "i2v":
                    early = cnt < int(split + (num - split) * ret)
                else:
                    first = cnt < int(split * ret)
                    early = first or split <= cnt <= (num - split) * ret + split
            elif given.get("rounding") == "nearest":
                early = cnt < int(ret * num + 0.5)
            elif given.get("rounding") == "ceil":
                early = cnt < math.ceil(ret * num)
            else:
                early = cnt < int(num * ret)
            skip = False
            if not early:
                cur = table[i] ** 0.5 if given.get("square_root") else table[i]
                ratio *= cur
                run += 1
                err += abs(1 - ratio)
                small = err < given["threshold"]
                if not given.get("strict", True):
                    small = err <= given["threshold"]
                skip = small and run <= given["max_skips"]
                if "forbidden" in given:
                    skip = skip and round(i * (28 - 1) / (steps - 1)) != 11
                if "largest_change" in given:
                    skip = skip and abs(1 - cur) <= 0.06
                if not skip:
                    ratio, err, run = 1.0, 0.0, 0
            if not skip:
                computed[name].append(i)
    return computed


@pytest.mark.parametrize("model", models("magcache"))
def test_every_schedule_is_that_of_the_published_loop(model: str) -> None:
    high = HIGH.get(model)
    steps = read_published("magcache", model)["steps"]
    plans = MagCache(model=model, high_steps=high).plans(steps)
    assert {name: list(plan.computed) for name, plan in plans.items()} == literal(model, high)


@pytest.mark.parametrize(("model", "options", "steps", "computed", "speedup"), ROWS)
def test_computed_steps_explain_the_reported_speedup(
    model: str, options: dict[str, float], steps: int, computed: int, speedup: float
) -> None:
    """Tables and defaults of the MagCache repository, speed-ups of its READMEs.

    Steps per computed step bound the speed-up of a run, since embedders, head and decoder stay.
    The reported one lies between 80 % and 103 % of that bound, which is how coarsely the READMEs
    round; the rows that lie above it stand among those not reproduced.
    """
    plan = MagCache(model=model, **options).plan(steps)
    assert len(plan.computed) == computed
    assert steps == read_published("magcache", model)["steps"]
    assert 0.8 < speedup / (steps / computed) < 1.03


@pytest.mark.parametrize(("model", "options", "steps", "computed", "speedup"), OTHER)
def test_reported_speedups_that_the_tables_do_not_give(
    model: str, options: dict[str, float], steps: int, computed: int, speedup: float
) -> None:
    """READMEs of the MagCache repository report more than the computed steps allow.

    For Open-Sora it is the other way round: the table gives fewer computed steps than the FLOPs of
    arXiv 2506.09045, Table 1, 1.64 of 3.15.
    """
    plan = MagCache(model=model, **options).plan(steps)
    assert len(plan.computed) == computed
    if model == "open-sora-1.2":
        assert computed / steps < 0.8 * 1.64 / 3.15
    else:
        assert speedup > steps / computed


def test_the_index_map_of_28_to_20_steps() -> None:
    """`nearest_interp` of the MagCache repository, which rounds halves to even as NumPy does."""
    expected = [0, 1, 3, 4, 6, 7, 9, 10, 11, 13, 14, 16, 17, 18, 20, 21, 23, 24, 26, 27]
    assert nearest(28, 20) == expected
    numpy = pytest.importorskip("numpy")
    for entries, steps in ((28, 20), (50, 33), (50, 7), (25, 13), (40, 79), (5, 3)):
        scale = (entries - 1) / (steps - 1)
        assert nearest(entries, steps) == numpy.round(numpy.arange(steps) * scale).tolist()
    assert nearest(28, 1) == [27]
    assert nearest(28, 28) == list(range(28))


@pytest.mark.parametrize("steps", [20, 28, 50, 56])
def test_flux_always_computes_the_step_that_maps_to_entry_11(steps: int) -> None:
    """`np.round(cnt * 27 / (num_steps - 1)) != 11` in MagCache4FLUX/magcache_flux.py."""
    forbidden = [i for i in range(steps) if round(i * 27 / (steps - 1)) == 11]
    assert forbidden
    plan = MagCache(model="flux.1-dev", threshold=1e9, max_skips=99).plan(steps)
    assert set(forbidden) <= set(plan.computed)
    free = MagCache(model="flux.1-dev", threshold=1e9, max_skips=99, forbidden=()).plan(steps)
    assert not set(forbidden) & set(free.computed)


@pytest.mark.parametrize(
    ("model", "shift", "switch"), [("wan2.2-t2v-a14b", 12.0, 26), ("wan2.2-i2v-a14b", 5.0, 15)]
)
def test_the_second_network_takes_over_where_the_table_dips(
    model: str, shift: float, switch: int
) -> None:
    """Shift, 40 steps and boundary of Wan 2.2's own configuration give the dip of the table."""
    constants = read_published("magcache", model)
    grid = [1.0 - i / 40 for i in range(40)]
    sigmas = [shift * s / (1.0 + (shift - 1.0) * s) for s in grid]
    assert sum(sigma >= constants["boundary"] for sigma in sigmas) == switch
    table = constants["tables"]["cond"]
    assert min(range(5, 34), key=lambda i: table[i]) == switch


def test_the_rules_for_two_networks() -> None:
    """The step counts of MagCache4Wan2.2/magcache_generate.py, on its count of calls.

    Text to video computes the first 40 % of each network's calls, image to video all calls of the
    first network and the first 10 % of the second's.
    """
    t2v = MagCache(model="wan2.2-t2v-a14b", high_steps=26, threshold=99.0, max_skips=99)
    early = [i for i in range(40) if 2 * i < int(52 * 0.4)]
    again = [i for i in range(40) if 52 <= 2 * i <= 28 * 0.4 + 52]
    assert t2v.plans(40)["cond"].computed == (*early, *again)
    odd = [i for i in range(40) if 2 * i + 1 < 20 or 52 <= 2 * i + 1 <= 28 * 0.4 + 52]
    assert t2v.plans(40)["uncond"].computed == tuple(odd)
    i2v = MagCache(model="wan2.2-i2v-a14b", high_steps=15, threshold=99.0, max_skips=99)
    assert i2v.plans(40)["cond"].computed == tuple(i for i in range(40) if 2 * i < 35)
    assert i2v.plans(40)["uncond"].computed == tuple(i for i in range(40) if 2 * i + 1 < 35)
    with pytest.raises(PolicyError, match=r"two networks.*high_steps"):
        MagCache(model="wan2.2-i2v-a14b").plan(40)


def test_warm_up_is_rounded_as_each_script_does() -> None:
    """`int` on the count of all calls (Wan), `+ 0.5` (FLUX, diffusers), `ceil` (OmniGen2)."""
    ones = (1.0,) * 28

    def kept(rounding: str, retention: float = 0.1) -> int:
        policy = MagCache(ratios=ones, rounding=rounding, retention=retention, max_skips=99)
        return len(policy.plan(28).computed)

    assert [kept(r) for r in ("floor", "nearest", "ceil")] == [2, 3, 3]
    # 0.29 * 100 is a little less than 29
    assert len(MagCache(ratios=(1.0,) * 100, retention=0.29, max_skips=99).plan(100).computed) == 29
    # 0.1 of 2 * 28 calls are 5 calls: 3 of the first branch and 2 of the second
    wan = MagCache(
        ratios=(1.0,) * 56, branches=("cond", "uncond"), retention=0.1, max_skips=99
    ).plans(28)
    assert [len(plan.computed) for plan in wan.values()] == [3, 2]


def test_the_consistent_resampling_keeps_the_product_of_the_ratios() -> None:
    for model in models("magcache"):
        table = next(iter(read_published("magcache", model)["tables"].values()))
        for steps in (7, 20, 33, 2 * len(table)):
            made = resample_ratios(table, steps, "consistent")
            assert len(made) == steps
            assert math.prod(made) == pytest.approx(math.prod(table[1:]), rel=1e-9)
        assert resample_ratios(table, len(table), "consistent") == table
    fewer, nearby = (
        resample_ratios([1.0] + [0.9] * 20, 11, how) for how in ("consistent", "nearest")
    )
    assert fewer[1:] == pytest.approx([0.81] * 10)
    assert nearby[1:] == [0.9] * 10


def test_every_published_table_names_its_source_and_gives_a_schedule() -> None:
    for model in models("magcache"):
        constants = read_published("magcache", model)
        assert constants["repository"]
        assert constants["license"].startswith("Apache-2.0")
        assert constants["paper"] == "arXiv 2506.09045"
        steps = constants["steps"]
        assert {len(t) for t in constants["tables"].values()} == {steps}
        assert {t[0] for t in constants["tables"].values()} == {1.0}
        policy = MagCache(model=model, high_steps=steps // 2)
        for plan in policy.plans(steps).values():
            assert 0.2 * steps < len(plan.computed) < steps
            assert plan.computed[0] == 0
            runs = [
                b - a - 1 for a, b in zip(plan.computed, (*plan.computed[1:], steps), strict=True)
            ]
            assert max(runs) <= constants["max_skips"]


def test_an_unknown_model_lists_what_exists_and_how_to_calibrate() -> None:
    with pytest.raises(PolicyError, match=r"'sd3'.*wan2\.1-t2v-1\.3b.*erta calibrate") as found:
        MagCache(model="sd3").plan(28)
    assert "--policy magcache" in str(found.value)
    with pytest.raises(PolicyError, match=r"no published constants of 'nothing'.*magcache"):
        read_published("nothing", "flux.1-dev")


def test_what_is_read_cannot_be_changed_for_others() -> None:
    first = read_published("magcache", "flux.1-dev")
    first["tables"]["all"][0] = 7.0
    assert read_published("magcache", "flux.1-dev")["tables"]["all"][0] == 1.0


PAGE = Path(__file__).parents[3] / "docs/explanation/methods/magcache.md"
HIGH = {"wan2.2-t2v-a14b": 26, "wan2.2-i2v-a14b": 15}


def test_the_table_of_the_page_is_what_the_policy_computes() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| (\d+) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    assert [row[0] for row in rows] == list(models("magcache"))
    for model, steps, rest in rows:
        threshold, skips, retention, computed, allows, _ = (
            cell.strip() for cell in rest.split("|")
        )
        policy = MagCache(model=model, high_steps=HIGH.get(model))
        counts = [len(plan.computed) for plan in policy.plans(int(steps)).values()]
        assert computed == " / ".join(map(str, counts)), model
        assert allows == f"{int(steps) * len(counts) / sum(counts):.2f}", model
        rule = policy._rule
        shown = (float(threshold), int(skips), float(retention))
        assert shown == (rule.threshold, rule.max_skips, rule.retention), model
