"""How a network's output relates to its latents, so that a residual can be taken and rebuilt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from erta_framework.errors import CapabilityError


class Relation(StrEnum):
    """How the output relates to the latents.

    `EQUAL`: both have the same shape, reference tokens included. `NARROWED`: conditions were
    concatenated to the latents, latents first. `DOUBLED`: the output has a second half of
    channels, the learned variance. `OUTPUT`: there is no residual; the whole output is reused.
    """

    EQUAL = "output - input"
    NARROWED = "output - first part of the input"
    DOUBLED = "first half of the output - input, second half reused"
    OUTPUT = "whole output reused"


@dataclass(frozen=True, slots=True)
class ShapeRule:
    """A relation, and the dimension and size that it concerns."""

    relation: Relation
    dim: int = 0
    size: int = 0

    def reference(self, latents: Tensor) -> Tensor:
        """The part of the latents that the residual is taken against; not for `OUTPUT`."""
        if self.relation is Relation.NARROWED:
            return latents.narrow(self.dim, 0, self.size)
        return latents

    def main(self, output: Tensor) -> Tensor:
        """The part of the output that is latents plus residual."""
        return (
            output.narrow(self.dim, 0, self.size) if self.relation is Relation.DOUBLED else output
        )

    def rest(self, output: Tensor) -> Tensor | None:
        """A copy of the part without a residual; pipelines may write into the original."""
        if self.relation is not Relation.DOUBLED:
            return None
        return output.narrow(self.dim, self.size, output.shape[self.dim] - self.size).clone()


def find_shape_rule(latents: Tensor, output: Tensor) -> ShapeRule:
    """Find the rule that relates these two shapes."""
    if latents.shape == output.shape:
        return ShapeRule(Relation.EQUAL)
    if latents.ndim == output.ndim:
        differing = [d for d in range(latents.ndim) if latents.shape[d] != output.shape[d]]
        if len(differing) == 1:
            (dim,) = differing
            before, after = latents.shape[dim], output.shape[dim]
            if dim > 0 and before > after:
                return ShapeRule(Relation.NARROWED, dim, after)
            if dim > 0 and after == 2 * before:
                return ShapeRule(Relation.DOUBLED, dim, before)
    return ShapeRule(Relation.OUTPUT)


def as_tensor(value: Any, what: str) -> Tensor:
    """A tensor as it is; a list of tensors of one shape is stacked along a new first dimension.

    Raises:
        CapabilityError: It is neither; the message says what it is.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, list | tuple) and value and all(isinstance(v, Tensor) for v in value):
        if len({v.shape for v in value}) == 1:
            return torch.stack(list(value))
        shapes = ", ".join(str(tuple(v.shape)) for v in value)
        raise CapabilityError(
            f"{what} is a list of tensors of unequal shapes ({shapes}); sample prompts of one "
            "size a batch"
        )
    raise CapabilityError(
        f"{what} is {type(value).__name__}; a tensor or list of tensors is needed"
    )


@dataclass(frozen=True, slots=True, eq=False)
class OutputSpec:
    """How a network returned its prediction, so that a reused one is returned in the same form.

    The prediction itself is not kept. Other outputs are: a reused call returns those of the last
    computed call. They are copies, because pipelines may write into the originals.

    Attributes:
        rule: How the prediction relates to the latents.
        dtype: Type of the prediction.
        device: Where the prediction lives.
        shape: Shape of the part that is latents plus residual.
        rest: The half of the channels without a residual; None if there is none.
        listed: `list` or `tuple` where the prediction is a list of tensors.
        container: Class that holds the prediction and other outputs; None for a bare prediction.
        names: Names of the outputs, if the container is a mapping.
        others: The outputs after the prediction.
    """

    rule: ShapeRule
    dtype: torch.dtype
    device: torch.device
    shape: torch.Size
    rest: Tensor | None
    listed: type | None
    container: type | None
    names: tuple[str, ...]
    others: tuple[Any, ...]

    def reference(self, latents: Tensor) -> Tensor:
        """The part of the latents that the residual is taken against, in the prediction's dtype."""
        if self.rule.relation is Relation.EQUAL:
            return latents if latents.dtype is self.dtype else latents.to(self.dtype)
        if self.rule.relation is Relation.OUTPUT:
            return torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        reference = self.rule.reference(latents)
        return reference if reference.dtype is self.dtype else reference.to(self.dtype)

    def match(self, raw: Any) -> Tensor | None:
        """The prediction in a return value of the same form; None if it must be read anew.

        This is a shortcut for the usual form, one tensor, which is read at every network call.
        """
        if self.others or self.rest is not None or self.listed is not None:
            return None
        if self.container is not (None if isinstance(raw, Tensor) else type(raw)) or self.names:
            return None
        if self.container is not None and len(raw) != 1:
            return None
        value = raw if self.container is None else raw[0]
        alike = (
            isinstance(value, Tensor)
            and value.dtype is self.dtype
            and value.shape == self.shape
            and value.device == self.device
        )
        return value if alike else None

    def rebuild(self, prediction: Tensor) -> Any:
        """A return value of this form around another prediction; the other outputs are reused."""
        whole = prediction
        if self.rest is not None:
            whole = torch.cat([prediction, self.rest], dim=self.rule.dim)
        new: Any = whole if self.listed is None else self.listed(whole.unbind(0))
        if self.container is None:
            return new
        others = tuple(map(copy_value, self.others))
        if self.names:
            return self.container(**dict(zip(self.names, (new, *others), strict=True)))
        return (new, *others)


def copy_value(value: Any) -> Any:
    """Copy a tensor or a list of tensors; anything else, such as a network's cache, is shared."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, list) and all(isinstance(item, Tensor) for item in value):
        return [item.clone() for item in value]
    return value


def read_output(raw: Any, latents: Tensor, network: str) -> tuple[Tensor, OutputSpec]:
    """Read the prediction in a return value, and the form of that value.

    Args:
        raw: A tensor, a tuple, a mapping such as `ModelOutput`, or a list.
        latents: The latents of this call.
        network: Name of the component, for the message.

    Raises:
        CapabilityError: The prediction is no tensor and no list of equal-shaped tensors.
    """
    container: type | None = None
    names: tuple[str, ...] = ()
    values: tuple[Any, ...] = (raw,)
    if isinstance(raw, Mapping):
        container, names, values = type(raw), tuple(raw), tuple(raw.values())
    elif isinstance(raw, tuple):
        container, values = tuple, raw
    first, others = (values[0], values[1:]) if values else (None, ())
    prediction = as_tensor(first, f"the output of {network}")
    rule = find_shape_rule(latents, prediction)
    main = rule.main(prediction)
    spec = OutputSpec(
        rule=rule,
        dtype=prediction.dtype,
        device=prediction.device,
        shape=main.shape,
        rest=rule.rest(prediction),
        listed=None if isinstance(first, Tensor) else type(first),
        container=container,
        names=names,
        others=tuple(map(copy_value, others)),
    )
    return main, spec


def find_channel_dim(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Find the dimension of the latents that holds the channels.

    It is the one whose size is the network's `in_channels`, else its `out_channels`. If several
    dimensions fit, or none, it is the last of packed tokens `[B, L, C]` and the first after the
    batch otherwise.

    Example:
        >>> find_channel_dim(nn.Linear(1, 1), (1, 4096, 64))
        2
    """
    places = (2, 1) if len(shape) == 3 else tuple(range(1, len(shape)))
    config = getattr(getattr(network, "_orig_mod", network), "config", None) or {}
    for size in (config.get("in_channels"), config.get("out_channels")):
        for place in places:
            if isinstance(size, int) and shape[place] == size:
                return place
    return places[0] if places else 0
