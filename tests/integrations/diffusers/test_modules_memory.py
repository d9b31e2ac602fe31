"""The bound on what places keep, in pipelines and in configuration files."""

from __future__ import annotations

from pathlib import Path

import pytest

from erta_framework.cli._samplers import make_sampler
from erta_framework.config import load_config
from erta_framework.errors import CapabilityError, InputError
from erta_integrations.diffusers import attach
from tiny_pipelines import FAMILIES

AT = {"sites": {"kind": ["attention"]}, "when": {"refresh_interval": {"interval": 2, "first": 1}}}
WRITTEN = """
memory: {memory}
policies:
  - at:
      sites: {{kind: [attention]}}
      when: {{refresh_interval: {{interval: 2, first: 1}}}}
"""


def run(policies: object, **options: object) -> tuple[int, int]:
    family = FAMILIES["wan-euler"]
    pipe = family.build()
    with attach(pipe, policies, **options) as attached:  # type: ignore[arg-type]
        family.run(pipe, 4)
    return attached.traces[0].state_bytes, attached.traces[0].module_bytes


def test_a_pipeline_says_what_it_will_keep_and_keeps_to_the_bound() -> None:
    said, held = run([{"at": AT}])
    assert said == held > 0
    assert run([{"at": AT}], memory=said) == (said, held)
    with pytest.raises(CapabilityError, match=r"would keep .*give memory="):
        run([{"at": AT}], memory=said - 1)
    with pytest.raises(InputError, match="memory is 'little'"):
        run([{"at": AT}], memory="little")


def test_a_file_brings_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "at.yaml"
    path.write_text(WRITTEN.format(memory="1KiB"), encoding="utf-8")
    with pytest.raises(CapabilityError, match="memory is 1KiB"):
        run(path)
    said, _ = run(path, memory="1GiB")  # the argument goes before the file
    assert said > 1024
    assert make_sampler(load_config(path), ()).loop.memory == 1024
