"""Configuration: YAML and dotted overrides to frozen objects, by name, never by import path.

The only module that imports OmegaConf.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from erta_framework.calibration import Profile
from erta_framework.errors import ConfigError, ErtaError, suggestion
from erta_framework.jobs import FabricConfig, JobConfig
from erta_framework.plugins import Catalogue, Policy, budgeted
from erta_framework.plugins import guidance as guidance_catalogue
from erta_framework.plugins import policies as policy_catalogue
from erta_framework.plugins import solvers as solver_catalogue
from erta_framework.sampling.guidance import CFG, Guidance
from erta_framework.sampling.solvers import FlowEuler, Solver

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """A sampling or calibration run, as written in a configuration file.

    Attributes:
        model: Name of a bundled model.
        policies: The policies, in call order.
        solver: How the trajectory is integrated.
        guidance: How branches combine.
        steps: Number of steps of the nominal schedule.
        sigmas: Own sigma list instead of `steps`.
        prompts: Prompts given in place.
        prompts_file: File with one prompt a line.
        seed: Seed of the first sample; sample k has seed + k.
        batch_size: Samples a batch.
        precision: `"32"`, `"bf16-mixed"` or `"16-mixed"`.
        accelerator: `"auto"`, `"cpu"` or `"cuda"`.
        devices: Number of devices.
        seam: What a reused step leaves out: `"latent"` the whole network, `"trunk"` its blocks, in
            a pipeline; `erta sample` and `erta calibrate` read it.
        output: Folder for what is written.
        fabric: Where a job over several devices runs, in the names of Lightning Fabric.
        job: How such a job is divided.
    """

    model: str = "shapes-wan"
    policies: tuple[Policy, ...] = ()
    solver: Solver = field(default_factory=FlowEuler)
    guidance: Guidance = field(default_factory=lambda: CFG(scale=3.0))
    steps: int = 50
    sigmas: tuple[float, ...] | None = None
    prompts: tuple[str, ...] = ()
    prompts_file: str | None = None
    seed: int = 0
    batch_size: int = 16
    precision: str = "32"
    accelerator: str = "auto"
    devices: int = 1
    seam: typing.Literal["latent", "trunk"] = "latent"
    output: str = "runs"
    fabric: FabricConfig = field(default_factory=FabricConfig)
    job: JobConfig = field(default_factory=JobConfig)


def load_config(
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    only: Collection[str] | None = None,
) -> RunConfig:
    """Read a YAML file and apply dotted overrides such as `policies.0.ertacache.calls=17`.

    Args:
        path: The file; None starts from the defaults.
        overrides: `key=value`, dotted, in YAML syntax; applied in order.
        only: Third-party distributions whose code may be loaded; see `registry.Catalogue`.

    Raises:
        ConfigError: The file cannot be read, a key is unknown or a value of the wrong type.
        RegistryError: A policy is not installed, or a part does not load.
    """
    try:
        loaded = OmegaConf.load(path) if path is not None else OmegaConf.create({})
        if not OmegaConf.is_dict(loaded):
            raise ConfigError(f"{path} holds a list; a configuration is a mapping of keys")
        for override in overrides:
            apply_override(loaded, override)
        plain = OmegaConf.to_container(loaded, resolve=True)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    except ErtaError:
        raise
    except Exception as error:  # yaml and omegaconf errors have no common base
        raise ConfigError(f"cannot read the configuration {path or overrides}: {error}") from error
    assert isinstance(plain, dict)
    return build_run({str(key): value for key, value in plain.items()}, only)


def apply_override(config: Any, override: str) -> None:
    """Set one dotted key.

    Raises:
        ConfigError: The override has no `=`, or its key leads nowhere.
    """
    key, separator, _ = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"the override {override!r} is not of the form key=value")
    value = OmegaConf.create({"value": None})
    try:
        value.merge_with_dotlist([f"value={override.partition('=')[2]}"])
        plain = OmegaConf.to_container(value, resolve=False)
        assert isinstance(plain, dict)
        # replaced, not merged: solver={ddim: {}} takes the place of the file's solver
        OmegaConf.update(config, key, plain["value"], merge=False, force_add=True)
    except Exception as error:  # yaml and omegaconf errors have no common base
        raise ConfigError(f"cannot apply the override {override!r}: {error}") from error


def build_run(values: Mapping[str, Any], only: Collection[str] | None = None) -> RunConfig:
    """Plain values as a `RunConfig`; parts are given as `{name: {option: value}}` or a name.

    Raises:
        ConfigError: A key is unknown or a value of the wrong type.
        RegistryError: A policy is not installed, or a part does not load.
    """
    values = dict(values)
    if "policies" in values:
        values["policies"] = build_policies(values["policies"] or [], only)
    if "solver" in values:
        values["solver"] = build_solver(values["solver"], only)
    if "guidance" in values:
        values["guidance"] = build_guidance(values["guidance"], only)
    for key, section in (("fabric", FabricConfig), ("job", JobConfig)):
        if key in values:
            if not isinstance(values[key], Mapping):
                raise ConfigError(f"{key} is {values[key]!r}; write {key}.option=value")
            values[key] = construct(section, values[key], where=key)
    return construct(RunConfig, values, where="configuration")


def build_solver(spec: object, only: Collection[str] | None = None) -> Solver:
    """A solver of the catalogue from `name` or `{name: {option: value}}`.

    Raises:
        ConfigError: The name or an option is unknown, or a value of the wrong type.
        RegistryError: The class does not load.
    """
    solver: Solver = build_part(spec, "solver", solver_catalogue(only), only)
    return solver


def build_guidance(spec: object, only: Collection[str] | None = None) -> Guidance:
    """A guidance rule of the catalogue, likewise."""
    guidance: Guidance = build_part(spec, "guidance", guidance_catalogue(only), only)
    return guidance


def build_part(
    spec: object, key: str, catalogue: Catalogue, only: Collection[str] | None = None
) -> Any:
    """The part that the configuration names under `key`."""
    name, options = named(spec, where=key)
    known = catalogue.names()
    if name not in known:
        raise ConfigError(f"unknown {key} {name!r}{catalogue.limit}; " + suggestion(name, known))
    return construct(catalogue.load(name), options, where=f"{key}.{name}", only=only)


def build_policies(specs: object, only: Collection[str] | None = None) -> tuple[Policy, ...]:
    """A list of `{name: {option: value}}` or names as policies, in order.

    Raises:
        ConfigError: The value is no list, or an option is unknown.
        RegistryError: A policy is not installed.
    """
    if isinstance(specs, str | Mapping) or not isinstance(specs, Sequence):
        raise ConfigError(
            f"policies is {specs!r}; it is a list, so that the order is visible, "
            "as in [{ertacache: {calls: 25}}]"
        )
    return tuple(
        build_policy(spec, where=f"policies.{i}", only=only) for i, spec in enumerate(specs)
    )


def build_policy(spec: object, where: str, only: Collection[str] | None = None) -> Policy:
    """One `{name: {option: value}}`, name or finished policy as a policy."""
    if isinstance(spec, Policy):
        return spec
    name, options = named(spec, where)
    policy: Policy = construct(
        policy_catalogue(only).load(name), options, where=f"{where}.{name}", only=only
    )
    return policy


def options_from(option: str, items: Sequence[str]) -> dict[str, Any]:
    """What a repeatable command-line option of the form `KEY=VALUE` says.

    Raises:
        ConfigError: An item is not of this form.

    Example:
        >>> options_from("--budget", ["psnr=30"])
        {'psnr': 30}
    """
    for item in items:
        if not all(part.strip() for part in item.partition("=")):
            raise ConfigError(f"{option} {item}: it must be KEY=VALUE")
    try:
        found = OmegaConf.to_container(OmegaConf.from_dotlist(list(items)))
    except Exception as error:  # yaml and omegaconf errors have no common base
        raise ConfigError(f"{option} {' '.join(items)}: it cannot be read: {error}") from error
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def named(spec: object, where: str) -> tuple[str, Mapping[str, Any]]:
    """The name and options of `name` or `{name: {option: value}}`.

    Raises:
        ConfigError: It is neither.
    """
    if isinstance(spec, str):
        return spec, {}
    if isinstance(spec, Mapping) and len(spec) == 1:
        (name, options), *_ = spec.items()
        if options is None or isinstance(options, Mapping):
            return str(name), options or {}
    raise ConfigError(f"{where} is {spec!r}; write a name or {{name: {{option: value}}}}")


def construct(
    cls: type[T], options: Mapping[str, Any], where: str, only: Collection[str] | None = None
) -> T:
    """Make a dataclass from plain options, refusing unknown keys and wrong types.

    Raises:
        ConfigError: Names the place, the key or value, and what would be right.
    """
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    try:
        hints = typing.get_type_hints(cls)
    except NameError as error:
        raise ConfigError(
            f"{where}: the types of {cls.__name__} cannot be read ({error}); import them outside "
            "of TYPE_CHECKING"
        ) from error
    for key in options:
        if key == "budget" and key not in fields and issubclass(cls, Policy):
            raise ConfigError(
                f"{where} takes no budget: its computed steps are decided while it samples, or "
                f"were fixed when its profile was made; use {', '.join(budgeted())}, or cap its "
                "calls with the policy `budget` before it, as in {budget: {calls: 20}}"
            )
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}; " + suggestion(str(key), fields))
    values = {
        key: converted(hints[key], value, where=f"{where}.{key}", only=only)
        for key, value in options.items()
    }
    try:
        return cls(**values)
    except ErtaError as error:
        error.add_note(f"in the configuration at {where}")
        raise
    except Exception as error:
        raise ConfigError(f"{where}: {type(error).__name__}: {error}") from error


def converted(hint: Any, value: Any, where: str, only: Collection[str] | None) -> Any:
    """A plain value as the type that a field declares.

    Raises:
        ConfigError: The value does not fit; names both.
    """
    members = typing.get_args(hint) if is_union(hint) else (hint,)
    if value is None and type(None) in members:
        return None
    if typing.Any in members or any(getattr(m, "_is_protocol", False) for m in members):
        return value
    classes = tuple(m for m in members if isinstance(m, type) and m is not type(None))
    if isinstance(value, classes) and not (isinstance(value, bool) and bool not in members):
        return value
    named_policy = isinstance(value, Mapping) or (isinstance(value, str) and str not in members)
    if named_policy and any(issubclass(m, Policy) for m in classes):
        return build_policy(value, where, only)
    record = next((m for m in classes if dataclasses.is_dataclass(m)), None)
    if isinstance(value, Mapping) and record is not None:
        return construct(record, value, where, only)
    for member in members:
        if typing.get_origin(member) in (tuple, list) and isinstance(value, list | tuple):
            return sequence(member, value, where, only)
        try:
            return primitive(member, value)
        except (OmegaConfBaseException, ValueError, TypeError):
            continue
    raise ConfigError(
        f"{where} is {value!r} of type {type(value).__name__}, expected {spelled(hint)}"
    )


def sequence(
    member: Any, value: Sequence[Any], where: str, only: Collection[str] | None
) -> tuple[Any, ...] | list[Any]:
    """The items of a list as `tuple[T, ...]`, `tuple[A, B]` or `list[T]` declares them.

    Raises:
        ConfigError: An item does not fit, or a fixed tuple has another length.
    """
    origin, arguments = typing.get_origin(member), typing.get_args(member)
    if origin is tuple and (len(arguments) < 2 or arguments[1] is not Ellipsis):
        if len(value) != len(arguments):
            raise ConfigError(f"{where} has {len(value)} items, expected {len(arguments)}")
        hints = list(arguments)
    else:
        hints = [arguments[0]] * len(value)
    items = (
        converted(hint, item, f"{where}.{i}", only)
        for i, (hint, item) in enumerate(zip(hints, value, strict=True))
    )
    return tuple(items) if origin is tuple else list(items)


def primitive(member: Any, value: Any) -> Any:
    """Convert by one member of a union: a literal, a path or an OmegaConf primitive."""
    if typing.get_origin(member) is typing.Literal:
        for choice in typing.get_args(member):
            if value == choice and type(value) is type(choice):  # True == 1
                return choice
        raise ValueError(f"{value!r} is none of {typing.get_args(member)}")
    if member is Path and isinstance(value, str):
        return Path(value)
    if member in (int, float, str, bool):
        if isinstance(value, bool) != (member is bool) or isinstance(value, Mapping | list):
            raise TypeError(f"{value!r} is no {member.__name__}")
        schema = dataclasses.make_dataclass("Schema", [("value", member)])
        merged: Any = OmegaConf.merge(OmegaConf.structured(schema), {"value": value})
        return merged["value"]
    raise TypeError(f"{value!r} does not fit {member!r}")


def is_union(hint: Any) -> bool:
    """Whether a type hint is a union."""
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def spelled(hint: Any) -> str:
    """A type hint as a person writes it."""
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def options_of(policy: Policy) -> dict[str, Any]:
    """The options that would configure this policy, as plain values.

    Raises:
        ConfigError: A field holds an object that no configuration file can hold.
    """
    return {
        f.name: plain_value(getattr(policy, f.name), f.name) for f in dataclasses.fields(policy)
    }


def plain_value(value: Any, where: str) -> Any:
    """A field value as YAML could hold it; nested policies become `{name: options}`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [plain_value(item, where) for item in value]
    if isinstance(value, Policy):
        return {registered_name(type(value)): options_of(value)}
    if isinstance(value, Mapping):
        return {str(key): plain_value(item, where) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, Profile | type):
        given = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {k: plain_value(v, where) for k, v in given.items() if v is not None}
    raise ConfigError(
        f"{where} holds {type(value).__name__}, which no configuration file can hold; "
        "give a file path instead"
    )


def registered_name(cls: type[Policy]) -> str:
    """The name under which a policy class is in the catalogue.

    Raises:
        ConfigError: It is not registered.
    """
    target = f"{cls.__module__}:{cls.__qualname__}"
    for entry in policy_catalogue().entries():
        if entry.point.value == target:
            return entry.name
    for entry in policy_catalogue().entries():
        if entry.point.value.rpartition(":")[2] == cls.__qualname__ and entry.point.load() is cls:
            return entry.name
    raise ConfigError(f"{target} is not registered under erta_framework.policies")
