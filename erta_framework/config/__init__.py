"""Configuration: YAML and dotted overrides to frozen objects, by name, never by import path."""

from erta_framework.config._build import (
    build_decoder,
    build_guidance,
    build_masked_run,
    build_policies,
    build_policy,
    build_run,
    build_solver,
)
from erta_framework.config._convert import construct, convert
from erta_framework.config._engine import PolicyLike, build_engine
from erta_framework.config._load import (
    apply_override,
    load_config,
    load_masked_config,
    load_run,
    options_from,
)
from erta_framework.config._masked_config import MaskedRunConfig
from erta_framework.config._options import options_of, registered_name
from erta_framework.config._run_config import RunConfig

__all__ = [
    "MaskedRunConfig",
    "PolicyLike",
    "RunConfig",
    "apply_override",
    "build_decoder",
    "build_engine",
    "build_guidance",
    "build_masked_run",
    "build_policies",
    "build_policy",
    "build_run",
    "build_solver",
    "construct",
    "convert",
    "load_config",
    "load_masked_config",
    "load_run",
    "options_from",
    "options_of",
    "registered_name",
]
