"""Reads a network's call: its arguments by name, and which of them are latents and timestep."""

from __future__ import annotations

import inspect
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

LATENTS = ("hidden_states", "sample", "x", "latents", "latent_model_input")
"""Usual names of the latents."""
TIMES = ("timestep", "timesteps", "t", "timestep_ratio")
"""Usual names of the timestep."""
CONDITION = re.compile(
    r"encoder|cap_feats|prompt|text|pooled|class_labels|mask|guidance|rotary|rope|freqs|cond|image_emb"
    r"|(^|_)(ids|pos|position|coords|indexes|shapes)"
)
TIME = re.compile(r"timesteps?$|^sigmas?$|^noise_level|^time$")


# -------------------------------------------------------------------------- signatures
def unwrap_class(network: nn.Module) -> type[nn.Module]:
    """Class of the network inside `torch.compile(network)` and inside pass-through wrappers."""
    # a missing attribute is slow to ask a module for, and this runs at every call
    inner = network._modules.get("_orig_mod") or network
    while is_pass_through(type(inner).forward) and len(children := list(inner.children())) == 1:
        (inner,) = children
        inner = getattr(inner, "_orig_mod", inner)
    return type(inner)


@lru_cache(maxsize=256)
def is_pass_through(forward: Callable[..., Any]) -> bool:
    """Whether it names no argument of its own: `forward(*args, **kwargs)`."""
    kinds = {p.kind for p in get_signature(forward).parameters.values()}
    anything = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    return bool(kinds) and kinds <= anything


@lru_cache(maxsize=256)
def get_signature(forward: Callable[..., Any]) -> inspect.Signature:
    """Signature of a class's `forward`, without self."""
    signature = inspect.signature(forward)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def get_network_signature(network: nn.Module) -> inspect.Signature:
    """Signature of the `forward` that the network's arguments reach in the end, without self."""
    return get_signature(unwrap_class(network).forward)


@lru_cache(maxsize=256)
def get_plain_names(forward: Callable[..., Any]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Names of the arguments, if each may be passed by position or by keyword; else none."""
    parameters = get_signature(forward).parameters.values()
    plain = all(p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for p in parameters)
    names = tuple(p.name for p in parameters) if plain else ()
    return names, frozenset(names)


# ----------------------------------------------------------------------------- binding
def bind_arguments(
    forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The arguments of a call by name.

    Args:
        forward: `forward` of the network's class.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """
    names, known = get_plain_names(forward)
    # the usual call is bound without `inspect`, because this runs at every network call
    if not args and LATENTS[0] in kwargs and known.issuperset(kwargs):
        return kwargs
    bound = dict(zip(names, args, strict=False))
    if (
        len(args) > len(names)
        or not known.issuperset(kwargs)
        or not bound.keys().isdisjoint(kwargs)
    ):
        return get_signature(forward).bind_partial(*args, **kwargs).arguments
    bound.update(kwargs)
    return {name: bound[name] for name in names if name in bound}


def to_call(
    network: nn.Module, arguments: Mapping[str, Any], num_positional: int = 0
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments by name as `args` and `kwargs` of a call; the inverse of `bind_arguments`.

    Args:
        network: The network to call.
        arguments: What `bind_arguments` returned, perhaps with other values.
        num_positional: How many are passed by position; a compiled network tells the two apart.
    """
    forward = unwrap_class(network).forward
    if not get_plain_names(forward)[0]:
        whole = inspect.BoundArguments(get_signature(forward), OrderedDict(arguments))
        return whole.args, whole.kwargs
    items = list(arguments.items())
    return tuple(value for _, value in items[:num_positional]), dict(items[num_positional:])


def find_argument(
    name: str, method: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """One argument of a method's call; None if it was not passed."""
    if name in kwargs:
        return kwargs[name]
    place = find_argument_place(name, method)
    return args[place] if place is not None and place < len(args) else None


def find_argument_place(name: str, method: Callable[..., Any]) -> int | None:
    """Position of an argument of a bound method or a function; None if there is none."""
    function = getattr(method, "__func__", None)
    if function is None:
        return find_place(inspect.signature(method), name)
    return find_method_place(function, name)


@lru_cache(maxsize=256)
def find_method_place(function: Callable[..., Any], name: str) -> int | None:
    """Position of an argument of a method, not counting self; None if there is none."""
    return find_place(get_signature(function), name)


def find_place(signature: inspect.Signature, name: str) -> int | None:
    """Position of an argument; None if there is no such argument."""
    names = tuple(signature.parameters)
    return names.index(name) if name in names else None


# --------------------------------------------------------------- latents and timestep
def first_of(arguments: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The first argument that has one of these names, or None."""
    for name in names:
        if name in arguments:
            return arguments[name]
    return None


def flatten_kwargs(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name, with the entries of a `**kwargs` parameter among them."""
    more = arguments.get("kwargs")
    return {**arguments, **more} if isinstance(more, Mapping) else dict(arguments)


def find_latents(arguments: Mapping[str, Any]) -> Any:
    """The latents among a call's arguments.

    They have a usual name. Otherwise they are the first argument that can be latents: a floating
    point tensor of three or more dimensions (or a list of such) that is no timestep and no
    condition. If there is none, the first argument is taken.
    """
    usual = first_of(arguments, LATENTS)
    if usual is not None:
        return usual
    flat = flatten_kwargs(arguments)
    if (usual := first_of(flat, LATENTS)) is not None:
        return usual
    candidates = (
        value
        for name, value in flat.items()
        if is_latent_like(value) and not TIME.search(name) and not CONDITION.search(name)
    )
    return next(candidates, next(iter(flat.values()), None))


def find_timestep(arguments: Mapping[str, Any]) -> Any:
    """The timestep among a call's arguments, by a usual name or one like it; None without one."""
    usual = first_of(arguments, TIMES)
    if usual is not None:
        return usual
    flat = flatten_kwargs(arguments)
    if (usual := first_of(flat, TIMES)) is not None:
        return usual
    return next((value for name, value in flat.items() if TIME.search(name)), None)


def is_latent_like(value: Any) -> bool:
    """Whether this is a floating point tensor of three or more dimensions, or a list of such."""
    values = value if isinstance(value, list | tuple) else [value]
    return bool(values) and all(
        isinstance(v, Tensor) and v.is_floating_point() and v.ndim >= 3 for v in values
    )
