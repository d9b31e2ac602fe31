"""What a module is, by its class, its attributes and its name: an attention, an MLP, a stage."""

from __future__ import annotations

import re

from torch import nn

from erta_framework.modules._places import Kind
from erta_framework.modules._source import iter_children

ATTENTION = re.compile(r"Attention|Attn")
ASIDE = re.compile(r"Pool|Norm|Processor|Modulation")
"""Classes that hold no place, though they may hold an attention or an MLP of their own."""
PROJECTIONS = (("to_q", "to_k"), ("to_qkv",), ("q_proj", "k_proj"), ("qkv",))
"""Children by which an attention is known whose class has another name."""
CROSS = re.compile(r"attn2|cross|_to_")
MLP_CLASS = re.compile(r"FeedForward|MLP|Mlp|SwiGLU|MoE|MOE|GLUMB")
MLP_NAME = re.compile(r"ffn?|(\w+_)?(ff|mlp)|ff_\w+|feed_forward")
FUSED = (("proj_out", ("attn", "proj_mlp")), ("down_proj", ("gate_proj", "up_proj")))
"""Outputs of an MLP that is no module of its own, with the modules that only feed them: the first
of FLUX' single blocks, whose output projects attention and MLP at once; the second an MLP whose
projections are children of the block."""


def is_attention(module: nn.Module) -> bool:
    """Whether a module is an attention, and holds no other."""
    return looks_like_attention(module) and not holds_attention(module)


def looks_like_attention(module: nn.Module) -> bool:
    """Whether class or projections are those of an attention; also true of what holds one."""
    if stands_aside(module) or not has_weights(module):
        return False
    if ATTENTION.search(type(module).__name__):
        return True
    children = dict(module.named_children())
    return any(all(part in children for part in parts) for parts in PROJECTIONS)


def stands_aside(module: nn.Module) -> bool:
    """Whether a module pools, norms or modulates: what is inside of it is no part of a block."""
    return bool(ASIDE.search(type(module).__name__))


def holds_attention(module: nn.Module) -> bool:
    """Whether there is an attention inside a module; the module itself does not count."""
    return any(looks_like_attention(part) for part in module.modules() if part is not module)


def is_cross(name: str, module: nn.Module) -> bool:
    """Whether an attention reads another sequence: its own flag says so, else its name."""
    flag = getattr(module, "is_cross_attention", None)
    return bool(CROSS.search(name)) if flag is None else bool(flag)


def is_mlp(name: str, module: nn.Module) -> bool:
    """Whether a module inside a block, and outside of its attention, is the block's MLP."""
    if not has_weights(module) or not any(True for _ in module.children()):
        return False
    return bool(MLP_CLASS.search(type(module).__name__) or MLP_NAME.fullmatch(name))


def has_weights(module: nn.Module) -> bool:
    """Whether a module has parameters."""
    return any(True for _ in module.parameters())


def find_fused(block: nn.Module) -> dict[str, tuple[str, ...]]:
    """The outputs of an MLP that is no module of its own, each with the children that feed it."""
    children = {name for name, child in block.named_children() if has_weights(child)}
    return {out: parts for out, parts in FUSED if children.issuperset((out, *parts))}


def find_stages(network: nn.Module) -> dict[str, Kind]:
    """The stages of a UNet by path; empty for any other network.

    A UNet has `down_blocks` and `up_blocks`, each of which holds `resnets`.
    """
    found: dict[str, Kind] = {}
    kinds: tuple[Kind, ...] = ("down", "up")
    for kind in kinds:
        stages = getattr(network, f"{kind}_blocks", None)
        if not isinstance(stages, nn.ModuleList) or not stages:
            return {}
        if not all(isinstance(getattr(stage, "resnets", None), nn.ModuleList) for stage in stages):
            return {}
        found |= {f"{kind}_blocks.{index}": kind for index in range(len(stages))}
    if isinstance(getattr(network, "mid_block", None), nn.Module):
        found["mid_block"] = "mid"
    return found


def find_units(stage: nn.Module) -> dict[str, tuple[int, tuple[str, ...]]]:
    """The units of a stage: by the name of their first module, their number and all their modules.

    Unit `j` is the `j`-th member of every list that is as long as `resnets`, in the order of
    execution.
    """
    length = len(stage.resnets)  # type: ignore[arg-type]
    lists = {
        name
        for name, part in stage.named_children()
        if isinstance(part, nn.ModuleList) and len(part) == length and "sampler" not in name
    }
    found: dict[int, list[str]] = {}
    for name, _ in iter_children(stage):
        owner, _, index = name.rpartition(".")
        if owner in lists:
            found.setdefault(int(index), []).append(name)
    return {names[0]: (index, tuple(names)) for index, names in found.items()}
