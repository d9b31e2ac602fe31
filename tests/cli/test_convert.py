"""`erta schedule`: from one format of schedule files to another."""

from __future__ import annotations

import json
from pathlib import Path


def test_a_list_becomes_an_environment(erta, tmp_path):
    Path("plan.json").write_text("[0, 1, 4]")
    asked = ("schedule", "convert", "plan.json", "--from", "steps", "--to")
    done = erta(*asked, "sglang", "--steps", "6")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[:2] == [
        "SGLANG_CACHE_DIT_SCM_COMPUTE_BINS=2,1",
        "SGLANG_CACHE_DIT_SCM_CACHE_BINS=2,1",
    ]
    missing = erta(*asked, "sglang")
    assert missing.exit_code == 2
    assert "give --steps N" in missing.output


def test_what_is_lost_is_said(erta):
    Path("path.json").write_text('{"fresh": [0, 2, 3], "spans": [2, 0]}')
    done = erta("schedule", "convert", "path.json", "--from", "meancache", "--to", "mask")
    assert json.loads(done.stdout) == [1, 0, 1, 1]
    assert "lost: spans of meancache" in done.stderr


def test_files_are_not_replaced_unasked(erta):
    Path("mask.json").write_text("[1, 0, 1]")
    asked = ("schedule", "convert", "mask.json", "--from", "mask", "--to", "smoothcache")
    named = (*asked, "--write", "components=[attn1,ff]", "-o", "smooth.json")
    assert erta(*named).exit_code == 0
    assert json.loads(Path("smooth.json").read_text()) == {"attn1": [1, 0, 1], "ff": [1, 0, 1]}
    again = erta(*named)
    assert again.exit_code == 2
    assert "--force" in again.output
    assert erta(*named, "--force").exit_code == 0


def test_settings_for_reading_reach_the_format(erta):
    Path("ratios.json").write_text("[1.0, 1.0, 0.9, 0.9, 0.5, 0.5]")
    asked = ("schedule", "convert", "ratios.json", "--from", "magcache", "--to", "mask")
    rule = ("--read", "branches=[cond,uncond]", "--read", "threshold=0.2", "--read", "retention=0")
    assert json.loads(erta(*asked, *rule).stdout) == [1, 0, 1]
    wrong = erta(*asked, "--read", "treshold=1")
    assert wrong.exit_code == 2
    assert "treshold is no setting" in wrong.output


def test_every_format_is_listed(erta):
    listed = json.loads(erta("schedule", "formats", "--json").stdout)
    assert {"steps", "mask", "cache-dit", "sglang", "magcache", "smoothcache"} < set(listed)
    assert "branches" in listed["magcache"]["read"]
    shown = erta("schedule", "formats").stdout
    assert all(name in shown for name in listed)
    unknown = erta("schedule", "convert", "x", "--from", "stepz", "--to", "mask")
    assert unknown.exit_code == 2
    assert "did you mean 'steps'" in unknown.output
