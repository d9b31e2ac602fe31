"""UNets of every kind that can be cut, their inputs, and modules that are watched or replaced."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tiny_pipelines import FAMILIES, build_model, drawn

DOWN, UP = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
SMALL = {"norm_num_groups": 4, "attention_head_dim": 4, "sample_size": 8}
TEXT = {"cross_attention_dim": 16, **SMALL}
VIDEO = {
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 24,
    "cross_attention_dim": 16,
    "num_attention_heads": (2, 4),
    "sample_size": 8,
}


@dataclass(frozen=True)
class Case:
    """A UNet and its inputs at a step."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    rest: Mapping[str, Any]
    skips: int

    def inputs(self, step: int) -> dict[str, Any]:
        x = drawn(*self.shape, seed=step)
        return {"sample": x, "timestep": torch.tensor(900 - 100 * step), **self.rest}


def text() -> dict[str, Any]:
    return {"encoder_hidden_states": drawn(2, 5, 16, seed=3)}


def sdxl() -> dict[str, Any]:
    added = {"text_embeds": drawn(2, 16, seed=4), "time_ids": drawn(2, 6, seed=5)}
    return {**text(), "added_cond_kwargs": added}


def build_deep() -> nn.Module:
    """Three stages of two units, as SDXL has them; the first without attention."""
    return build_model(
        "UNet2DConditionModel",
        block_out_channels=(8, 8, 16),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        **TEXT,
    )


def build_video() -> nn.Module:
    """The UNet of Stable Video Diffusion, whose norms have 32 groups."""
    return build_model(
        "UNetSpatioTemporalConditionModel",
        block_out_channels=(32, 64),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        **VIDEO,
    )


def build_pixels() -> nn.Module:
    """The UNet of DDPM."""
    return build_model(
        "UNet2DModel",
        block_out_channels=(8, 16),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **SMALL,
    )


def controlled() -> dict[str, Any]:
    """What a ControlNet adds to the skips and to the middle."""
    sizes = ((8, 8), (8, 4), (16, 4))
    skips = (drawn(2, 8, 8, 8), *(drawn(2, c, s, s, seed=s) for c, s in sizes))
    return {
        **text(),
        "down_block_additional_residuals": skips,
        "mid_block_additional_residual": drawn(2, 16, 4, 4, seed=6),
    }


CASES = {
    "controlnet": Case(lambda: FAMILIES["sd"].build().unet, (2, 4, 8, 8), controlled(), 4),
    "sd": Case(lambda: FAMILIES["sd"].build().unet, (2, 4, 8, 8), text(), 4),
    "sdxl": Case(lambda: FAMILIES["sdxl"].build().unet, (2, 4, 8, 8), sdxl(), 4),
    "three stages": Case(build_deep, (2, 4, 8, 8), text(), 9),
    "animatediff": Case(lambda: FAMILIES["animatediff"].build().unet, (1, 4, 3, 8, 8), {}, 4),
    "svd": Case(build_video, (1, 3, 8, 8, 8), {}, 6),
    "ddpm": Case(build_pixels, (2, 3, 8, 8), {}, 6),
}
PAIRS = [(name, branch) for name, case in CASES.items() for branch in range(case.skips)]


@functools.cache
def built(name: str) -> nn.Module:
    return CASES[name].build()


def inputs(name: str, step: int) -> dict[str, Any]:
    found = CASES[name].inputs(step)
    if name == "animatediff":
        found["encoder_hidden_states"] = drawn(3, 5, 16, seed=3)
    if name == "svd":
        found["encoder_hidden_states"] = drawn(1, 5, 16, seed=3)
        found["added_time_ids"] = drawn(1, 3, seed=5)
    return found


def run(name: str, step: int) -> Tensor:
    with torch.no_grad():
        output: Tensor = built(name)(return_dict=False, **inputs(name, step))[0]
    return output


@contextmanager
def recorded(network: nn.Module, paths: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The outputs of some modules."""
    found: dict[str, Any] = {}
    handles = [
        network.get_submodule(path).register_forward_hook(
            lambda _, __, output, path=path: found.update({path: output})
        )
        for path in paths
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replaced(network: nn.Module, outputs: Mapping[str, Any]) -> Iterator[None]:
    """Modules that do not run, and return what is given."""
    modules = [network.get_submodule(path) for path in outputs]
    for module, output in zip(modules, outputs.values(), strict=True):
        vars(module)["forward"] = lambda *_, output=output, **__: output
    try:
        yield
    finally:
        for module in modules:
            del vars(module)["forward"]
