"""How a tiny pipeline is built, run and counted, and the parts that several of them share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

Extra = Callable[[int], dict[str, Any]]
"""Embeddings and the like for a batch size."""


@dataclass(frozen=True)
class Family:
    """How to build and run one pipeline.

    Attributes:
        build: Makes the pipeline, with the same weights every time.
        inputs: Embeddings and the like for a batch size.
        size: Resolution, and whatever else the run always needs.
        other: Another resolution.
        calls: Network calls a step at the default guidance.
        inner: Submodules that run exactly once a network call, as `component.path`.
        layout: Order of the latents' dimensions.
        callback: Name of the callback argument; None where the pipeline has none.
        modular: Whether it is a modular pipeline, which names its outputs.
        batches: Whether the pipeline takes more than one sample.
        cold: Steps besides the first that have nothing to reuse, because the network is called in
            another way from there on.
        slow: Whether it takes too long for quick tests.
        forwards: Steps the scheduler makes of `n` requested ones.
        skipped: Steps at the start that image-to-image leaves out.
    """

    build: Callable[[], Any]
    inputs: Extra
    size: Mapping[str, Any]
    other: Mapping[str, Any]
    calls: int = 1
    inner: tuple[str, ...] = ("transformer.proj_out",)
    layout: str = "BCHW"
    callback: str | None = "callback_on_step_end"
    modular: bool = False
    batches: bool = True
    cold: tuple[int, ...] = ()
    slow: bool = False
    forwards: Callable[[int], int] = field(default=lambda steps: steps)
    skipped: Callable[[int], int] = field(default=lambda steps: 0)

    def run(self, pipe: Any, steps: int = 6, batch: int = 1, seed: int = 0, **changes: Any) -> Any:
        """Latents of one request."""
        arguments: dict[str, Any] = {
            "num_inference_steps": steps,
            "output_type": "latent",
            "generator": torch.Generator().manual_seed(seed),
            **self.inputs(batch),
            **self.size,
            **changes,
        }
        if self.modular:
            arguments["output"] = arguments.pop("output_type") + "s"
            return pipe(**arguments)
        return torch.as_tensor(pipe(return_dict=False, **arguments)[0])


def drawn(*shape: int, seed: int = 7) -> Tensor:
    """A normal tensor `[*shape]` that is the same every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fill_zeros(network: nn.Module) -> nn.Module:
    """The network in eval mode, with its all-zero parameters drawn again."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


UNSET = {"LuminaNextDiT2DModel": "pad_token"}
"""Parameters that diffusers leaves to whatever the memory holds. Where that is zeros by chance,
`fill_zeros` draws other numbers for what comes after."""


def build_model(cls: str, seed: int = 0, **config: Any) -> Any:
    """Build a diffusers model of fixed random weights, by the name of its class."""
    return build_model_of(getattr(diffusers, cls), seed, **config)


def build_model_of(cls: type[nn.Module], seed: int = 0, **config: Any) -> Any:
    """Build a model of fixed random weights, of a class that diffusers does not export."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        model = cls(**config)
        if name := UNSET.get(cls.__name__):
            model.get_parameter(name).data.fill_(0.1)
        return fill_zeros(model)
    finally:
        torch.random.set_rng_state(state)


def build_pipeline(cls: str, **components: Any) -> Any:
    """Build a pipeline without a progress bar; components that are not given are None."""
    pipe_class = getattr(diffusers, cls)
    expected, _ = pipe_class._get_signature_keys(pipe_class)
    absent = {name: None for name in expected if name not in components}
    pipe = pipe_class(**{**absent, **components})
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Typed(nn.Module):
    """Stands in for a component of which a pipeline only reads the type and device."""

    dtype = torch.float32
    device = torch.device("cpu")


@contextmanager
def counted(pipe: Any, family: Family) -> Iterator[list[str]]:
    """Collect the component's name at every real network call, seen from inside the network."""
    calls: list[str] = []
    handles = []
    for path in family.inner:
        component, _, inner = path.partition(".")
        module = getattr(pipe, component)
        module = getattr(module, "_orig_mod", module).get_submodule(inner)
        handles.append(
            module.register_forward_pre_hook(lambda *_, name=component: calls.append(name))
        )
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def flow(**config: Any) -> Any:
    """A flow-matching Euler scheduler."""
    return diffusers.FlowMatchEulerDiscreteScheduler(**config)


def unipc() -> Any:
    """The flow scheduler that Wan ships with."""
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )


def build_image_vae(latent_channels: int = 1, **config: Any) -> Any:
    """A VAE of one level."""
    return build_model(
        "AutoencoderKL",
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
        **config,
    )


def build_sd_vae() -> Any:
    """The VAE of Stable Diffusion."""
    return build_model(
        "AutoencoderKL",
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=1,
    )


def configure_ada_norm() -> dict[str, Any]:
    """What the networks of PixArt and Latte have in common."""
    return {
        "num_attention_heads": 3,
        "attention_head_dim": 8,
        "cross_attention_dim": 24,
        "attention_bias": True,
        "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": 1000,
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "num_layers": 2,
        "caption_channels": 32,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 8,
        "sample_size": 8,
    }


def make_embeds(
    length: int, width: int, negative: bool = True, mask: str = "", **pooled: int
) -> Extra:
    """Embeddings `[B, length, width]`, with negative ones, masks and pooled ones on request."""

    def of(batch: int) -> dict[str, Any]:
        found: dict[str, Any] = {"prompt_embeds": drawn(batch, length, width)}
        for name, size in pooled.items():
            found[name] = drawn(batch, size, seed=8)
        if mask:
            found[mask] = torch.ones(batch, length, dtype=torch.bool)
        if negative:
            found |= {
                f"negative_{name}": value + 0.5
                for name, value in found.items()
                if value.is_floating_point()
            } | ({f"negative_{mask}": found[mask].clone()} if mask else {})
        return found

    return of


def make_pairs(masks: Mapping[str, int] | None = None, **sizes: tuple[int, ...]) -> Extra:
    """Inputs `[B, *size]` by name, with masks `[B, length]`, each also as a negative one."""

    def of(batch: int) -> dict[str, Any]:
        found = {name: drawn(batch, *size) for name, size in sizes.items()}
        negative = {f"negative_{name}": value + 0.5 for name, value in found.items()}
        for name, length in (masks or {}).items():
            found[name] = torch.ones(batch, length, dtype=torch.long)
            negative[f"negative_{name}"] = found[name].clone()
        return found | negative

    return of


def combine_inputs(base: Extra, extra: Extra) -> Extra:
    """The inputs of both; where both have a name, those of `extra`."""
    return lambda batch: {**base(batch), **extra(batch)}


def make_square(side: int, **rest: Any) -> dict[str, Any]:
    """Height and width, and whatever else is given."""
    return {"height": side, "width": side, **rest}
