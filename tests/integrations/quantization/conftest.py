"""Needs torchao and diffusers."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("torchao") and find_spec("diffusers") else ["test_*.py"]
