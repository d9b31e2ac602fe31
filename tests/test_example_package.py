"""The example plugin, installed as a user would: found by name, limited by name, and it runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "erta-everyother"

LOOK = """
import json
from erta_framework.errors import RegistryError
from erta_framework.plugins import policies

catalogue = policies()
owners = {entry.name: [entry.distribution, entry.version] for entry in catalogue.entries()}
try:
    loaded = repr(catalogue.load("everyother")(period=3))
except RegistryError as error:
    loaded = str(error)
print(json.dumps({"owners": owners, "loaded": loaded}))
"""

RUN = """
import json, sys
from erta_framework import Sampler
from erta_framework.config import load_config
from erta_framework.testing import GaussianMixtureFlow

config = load_config(sys.argv[1], overrides=["policies.0.everyother.period=4"])
sampler = Sampler(config.policies, guidance=config.guidance, num_steps=10, accelerator="cpu")
trace = sampler.sample(GaussianMixtureFlow(), ["a", "b"]).traces[0]
print(json.dumps({"computed": trace.computed_steps, "calls": trace.network_calls}))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example installed in it, as `pip install --target` does."""
    folder = tmp_path_factory.mktemp("plugin")
    source, target = folder / "source", folder / "site"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, "--target", str(target), str(source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return target


def python(site: Path, *arguments: str, plugins: str | None = None) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("ERTA_PLUGINS", "PYTHONPATH")}
    environment["PYTHONPATH"] = str(site)
    if plugins is not None:
        environment["ERTA_PLUGINS"] = plugins
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, cwd=site
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def look(site: Path, plugins: str | None = None) -> dict:
    return json.loads(python(site, "-c", LOOK, plugins=plugins))


@pytest.mark.slow
@pytest.mark.parametrize("plugins", [None, "erta-everyother", "other, Erta_EveryOther"])
def test_it_is_in_the_catalogue_and_loads(site, plugins):
    found = look(site, plugins)
    assert found["owners"]["everyother"] == ["erta-everyother", "0.1.0"]
    assert found["owners"]["ertacache"][0] == "erta-framework"
    assert found["loaded"] == "EveryOther(period=3)"


@pytest.mark.slow
@pytest.mark.parametrize("plugins", ["none", "", "another-plugin"])
def test_the_environment_can_hide_it(site, plugins):
    found = look(site, plugins)
    assert "everyother" not in found["owners"]
    assert "ertacache" in found["owners"]
    assert "no installed distribution provides 'everyother'" in found["loaded"]
    assert "ERTA_PLUGINS limits what loads" in found["loaded"]


@pytest.mark.slow
def test_it_runs_from_a_configuration(site, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("policies:\n  - everyother: {period: 3}\n", encoding="utf-8")
    assert json.loads(python(site, "-c", RUN, str(config))) == {
        "computed": [0, 4, 8],
        "calls": 6,
    }


@pytest.mark.slow
def test_its_own_conformance_test_passes(site):
    test = site.parent / "source" / "tests" / "test_policy.py"
    out = python(
        site, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(site), str(test)
    )
    assert " passed" in out
    assert "failed" not in out


def test_the_example_stays_the_size_of_its_promise():
    source = (EXAMPLE / "src" / "erta_everyother" / "__init__.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) < 40
    assert "erta_policies" not in source
