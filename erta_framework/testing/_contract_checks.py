"""Checks of a policy as an object: frozen, configurable, documented, fitting its hooks."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import io
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import torch

from erta_framework.calibration import Profile
from erta_framework.config import construct, options_of
from erta_framework.errors import ConfigError
from erta_framework.plugins import HOOKS, Engine, HookSpecs, Policy, Traits, flatten
from erta_framework.testing._compare import capture_settings, fail, find_difference
from erta_framework.testing._setup import choose_setup, make_engine

SOURCE = re.compile(r"arxiv|doi|https?://|\bsource:|\bours\b|\bour own\b", re.IGNORECASE)


def check_hook_arguments_exist(policy: Policy) -> None:
    """Every hook implementation takes arguments that its hook offers, and an engine builds."""
    for part in flatten([policy]):
        for hook in HOOKS:
            implementation = getattr(type(part), hook, None)
            if implementation is None:
                continue
            offered = [*inspect.signature(getattr(HookSpecs, hook)).parameters][1:]
            taken = [*inspect.signature(implementation).parameters][1:]
            unknown = [name for name in taken if name not in offered]
            if unknown:
                fail(
                    part,
                    f"its hook {hook} takes {', '.join(unknown)}",
                    f"{hook} offers {', '.join(offered)}",
                )
        if not isinstance(part.traits, Traits):
            fail(part, f"its traits are {part.traits!r}", "return erta_framework.Traits(...)")
    Engine([policy])


def check_frozen(policy: Policy) -> None:
    """Neither a field nor a new attribute can be set."""
    for name in (*(f.name for f in dataclasses.fields(policy)), "something_new"):
        try:
            setattr(policy, name, getattr(policy, name, None))
        except dataclasses.FrozenInstanceError:
            continue
        fail(policy, f"its attribute {name!r} could be set", "do not override __setattr__")


def check_copyable_and_picklable(policy: Policy) -> None:
    """A deep copy and a pickled copy hold the same settings and sample alike.

    Launchers and process pools pickle what they send to their workers.
    """
    setup = choose_setup(policy)
    request = setup.request(seed=41)
    expected = setup.run(make_engine(policy), request)
    for how, twin in (
        ("copy.deepcopy", copy.deepcopy(policy)),
        ("pickling", _pickle_and_load(policy)),
    ):
        if capture_settings((policy,)) != capture_settings((twin,)):
            fail(policy, f"{how} gave other settings, {twin!r}", "hold plain values in fields")
        problem = find_difference(setup.run(make_engine(twin), request), expected)
        if problem is not None:
            fail(policy, f"after {how} a request changed: {problem}", "hold plain values in fields")


def _pickle_and_load(policy: Policy) -> Policy:
    # torch's own writer copies tensors; nothing but this object is ever read back
    buffer = io.BytesIO()
    try:
        torch.save(policy, buffer)
    except Exception as error:  # picklers raise whatever a field's __reduce__ raises
        fail(
            policy,
            f"it cannot be pickled: {type(error).__name__}: {error}",
            "define the class at module level and hold plain values in fields, no lambdas",
        )
    buffer.seek(0)
    twin: Policy = torch.load(buffer, weights_only=False)
    return twin


def check_config_round_trip(policy: Policy) -> None:
    """Written as a configuration and read again, the policy has the same options and samples alike.

    Profiles held in memory are written to a file first, whose path the configuration names.
    """
    setup = choose_setup(policy)
    request = setup.request(seed=42)
    with tempfile.TemporaryDirectory() as folder:
        try:
            options = options_of(save_profiles(policy, Path(folder)))
            read = construct(type(policy), json.loads(json.dumps(options)), where=policy.name)
            again = options_of(read)
        except (ConfigError, TypeError, ValueError) as error:
            fail(
                policy,
                f"no configuration file can hold it: {error}",
                "declare fields as numbers, text, tuples, policies, or a profile's path",
            )
        if options != again:
            fail(policy, f"its options {options} came back as {again}", "keep fields as given")
        problem = find_difference(
            setup.run(make_engine(read), request), setup.run(make_engine(policy), request)
        )
    if problem is not None:
        fail(
            policy,
            f"made again from its options it samples differently: {problem}",
            "let every setting be a field",
        )


def save_profiles(policy: Policy, folder: Path) -> Policy:
    """A copy that names profile files instead of holding profiles, in nested policies as well."""
    changed: dict[str, Any] = {}
    for f in dataclasses.fields(policy):
        value = getattr(policy, f.name)
        if isinstance(value, Profile):
            changed[f.name] = str(value.save(folder / f"{value.digest}.safetensors"))
        elif isinstance(value, Policy):
            changed[f.name] = save_profiles(value, folder)
    return dataclasses.replace(policy, **changed) if changed else policy


def check_documented(policy: Policy) -> None:
    """The class says what it does, where it comes from, and what each field is."""
    cls = type(policy)
    text = inspect.cleandoc(cls.__doc__ or "")
    # a dataclass without a docstring gets its signature as one
    if not text or text.startswith(f"{cls.__name__}("):
        fail(policy, "it has no docstring", "say in one line what it does")
    if not SOURCE.search(text):
        fail(
            policy,
            "its docstring names no source",
            "name the paper (Source: arXiv 0000.00000), or write Source: ours",
        )
    missing = [
        f.name
        for f in dataclasses.fields(policy)
        if not re.search(rf"\b{re.escape(f.name)}\b", text)
    ]
    if missing:
        fail(
            policy,
            f"its docstring does not mention {', '.join(missing)}",
            "list fields under Attributes:",
        )


CONTRACT_CHECKS = (
    check_hook_arguments_exist,
    check_frozen,
    check_copyable_and_picklable,
    check_config_round_trip,
    check_documented,
)
