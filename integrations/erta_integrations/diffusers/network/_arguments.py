"""The denoising networks of a pipeline, found by what their `forward` takes."""

from __future__ import annotations

import inspect
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from erta_framework.errors import CapabilityError

USUAL = ("transformer", "transformer_2", "unet", "prior")
LATENTS = ("hidden_states", "sample", "x", "latents", "latent_model_input")
TIMES = ("timestep", "timesteps", "t", "timestep_ratio")
CONTROL = ("controlnet_cond", "control_context", "controls_latents")
CONDITION = re.compile(
    r"encoder|cap_feats|prompt|text|pooled|class_labels|mask|guidance|rotary|rope|freqs|cond|image_emb"
    r"|(^|_)(ids|pos|position|coords|indexes|shapes)"
)
TIME = re.compile(r"timesteps?$|^sigmas?$|^noise_level|^time$")


def find_networks(pipe: Any, names: Sequence[str] | None) -> dict[str, nn.Module]:
    """The denoising networks of a pipeline, by component name.

    Without names, these are the components that usually are one and every other module whose
    `forward` takes latents and a time; control networks, which only feed one, are left out.

    Raises:
        CapabilityError: There is none, or one was compiled in place.
    """
    modules = {n: m for n, m in components(pipe).items() if isinstance(m, nn.Module)}
    if names is None:
        found = {n: m for n, m in modules.items() if n in USUAL or denoises(m)}
    else:
        found = {n: modules[n] for n in names if n in modules}
    if not found or (names is not None and len(found) < len(names)):
        asked = "that takes latents and a time" if names is None else f"for {', '.join(names)}"
        raise CapabilityError(
            f"{type(pipe).__name__} has no network {asked}; name it with networks=[...], "
            f"its modules are: {', '.join(modules) or 'none'}"
        )
    refuse_compiled(found)
    return found


def find_others(pipe: Any, driven: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The networks that a pipeline also steps with, when only some were named.

    Raises:
        CapabilityError: One was compiled in place.
    """
    parts = components(pipe)
    found = {n: parts[n] for n in USUAL if n not in driven and isinstance(parts[n], nn.Module)}
    others = {n: m for n, m in found.items() if denoises(m)}
    refuse_compiled(others)
    return others


def refuse_compiled(networks: Mapping[str, nn.Module]) -> None:
    """Refuse networks whose calls are compiled, patches and all."""
    for name, network in networks.items():
        if compiled_in_place(network):
            raise CapabilityError(
                f"{name} ({type(network).__name__}) was compiled in place with module.compile(), "
                f"which would trace the engine; use pipe.{name} = torch.compile(pipe.{name}) or "
                "compile_repeated_blocks()"
            )


def components(pipe: Any) -> dict[str, Any]:
    """The pipeline's components as they are now, which `pipe.components` may not show."""
    names = [*getattr(pipe, "components", {}), *USUAL]
    return {name: getattr(pipe, name, None) for name in dict.fromkeys(names)}


def denoises(module: nn.Module) -> bool:
    """Whether `forward` takes latents and a time, and is not that of a control network."""
    taken = signature(module).parameters.keys()
    timed = bool(taken & set(TIMES)) or any(TIME.search(name) for name in taken)
    return bool(taken & set(LATENTS) and timed and not taken & set(CONTROL))


def compiled_in_place(network: nn.Module) -> bool:
    """Whether `network.compile()` was called."""
    return getattr(network, "_compiled_call_impl", None) is not None


def unwrapped(network: nn.Module) -> type[nn.Module]:
    """Class of the network under `torch.compile(network)` and under modules that only pass on."""
    # attributes that are not there are slow to ask a module for, and this runs at every call
    inner = network._modules.get("_orig_mod") or network
    while passes_on(type(inner).forward) and len(children := list(inner.children())) == 1:
        (inner,) = children
        inner = getattr(inner, "_orig_mod", inner)
    return type(inner)


@lru_cache(maxsize=256)
def passes_on(forward: Callable[..., Any]) -> bool:
    """Whether it names no argument of its own: `forward(*args, **kwargs)`."""
    kinds = {p.kind for p in signature_of(forward).parameters.values()}
    anything = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    return bool(kinds) and kinds <= anything


@lru_cache(maxsize=256)
def signature_of(forward: Callable[..., Any]) -> inspect.Signature:
    """Signature of a network class's `forward`, without self."""
    signature = inspect.signature(forward)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def signature(network: nn.Module) -> inspect.Signature:
    """Signature of the `forward` that a network's arguments reach, without self."""
    return signature_of(unwrapped(network).forward)


def bound(
    forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The arguments of a call by name; `forward` is that of the network's class."""
    names, known = names_of(forward)
    # binding by hand what needs no rules: this runs at every call
    if not args and LATENTS[0] in kwargs and known.issuperset(kwargs):
        return kwargs
    given = dict(zip(names, args, strict=False))
    if (
        len(args) > len(names)
        or not known.issuperset(kwargs)
        or not given.keys().isdisjoint(kwargs)
    ):
        return signature_of(forward).bind_partial(*args, **kwargs).arguments
    given.update(kwargs)
    return {name: given[name] for name in names if name in given}


def given_as(
    name: str, method: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """One argument of a method's call; None if it was not given."""
    if name in kwargs:
        return kwargs[name]
    function = getattr(method, "__func__", None)
    if function is None:
        place = place_in(inspect.signature(method), name)
    else:
        place = place_of(function, name)
    return args[place] if place is not None and place < len(args) else None


@lru_cache(maxsize=256)
def place_of(function: Callable[..., Any], name: str) -> int | None:
    """Where an argument of a method stands, self left out."""
    return place_in(signature_of(function), name)


def place_in(taken: inspect.Signature, name: str) -> int | None:
    """Where an argument stands; None if there is no such argument."""
    names = tuple(taken.parameters)
    return names.index(name) if name in names else None


@lru_cache(maxsize=256)
def names_of(forward: Callable[..., Any]) -> tuple[tuple[str, ...], frozenset[str]]:
    """The arguments of a `forward` that may be given by place or by name; none if others exist."""
    parameters = signature_of(forward).parameters.values()
    plain = all(p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for p in parameters)
    names = tuple(p.name for p in parameters) if plain else ()
    return names, frozenset(names)


def called(
    network: nn.Module, arguments: Mapping[str, Any], placed: int = 0
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments by name, as `args` and `kwargs` of a call.

    Args:
        network: Whose call it is.
        arguments: What `bound` gave, perhaps with other values.
        placed: How many were given by place; a compiled network tells the two apart.
    """
    forward = unwrapped(network).forward
    if not names_of(forward)[0]:
        whole = inspect.BoundArguments(signature_of(forward), OrderedDict(arguments))
        return whole.args, whole.kwargs
    items = list(arguments.items())
    return tuple(value for _, value in items[:placed]), dict(items[placed:])


def pick(arguments: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The argument that has one of these names, or None."""
    for name in names:
        if name in arguments:
            return arguments[name]
    return None


def latents_of(arguments: Mapping[str, Any]) -> Any:
    """The latents among a call's arguments.

    They have a usual name, or are the first argument that looks like some: floating point, of three
    dimensions or more (or a list of such), no time and no condition. Else it is the first argument.
    """
    usual = pick(arguments, LATENTS)
    if usual is not None:
        return usual
    flat = named(arguments)
    if (usual := pick(flat, LATENTS)) is not None:
        return usual
    looks = (
        value
        for name, value in flat.items()
        if dense(value) and not TIME.search(name) and not CONDITION.search(name)
    )
    return next(looks, next(iter(flat.values()), None))


def time_of(arguments: Mapping[str, Any]) -> Any:
    """The time among a call's arguments, by a usual name or one like it; None if there is none."""
    usual = pick(arguments, TIMES)
    if usual is not None:
        return usual
    flat = named(arguments)
    if (usual := pick(flat, TIMES)) is not None:
        return usual
    return next((value for name, value in flat.items() if TIME.search(name)), None)


def named(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name, with those that `forward` takes as `**kwargs` among them."""
    more = arguments.get("kwargs")
    return {**arguments, **more} if isinstance(more, Mapping) else dict(arguments)


def dense(value: Any) -> bool:
    """Whether this is a floating tensor of three dimensions or more, or a list of such."""
    values = value if isinstance(value, list | tuple) else [value]
    return bool(values) and all(
        isinstance(v, Tensor) and v.is_floating_point() and v.ndim >= 3 for v in values
    )
