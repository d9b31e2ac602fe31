"""Tiny offline pipelines, one a family: random weights, embeddings instead of text encoders.

All-zero parameters are drawn again, because a network whose last layer is zero predicts zero
whether it ran or not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

Extra = Callable[[int], dict[str, Any]]


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
        callback: Name of the callback argument; None where the pipeline has none.
        modular: Whether it is a modular pipeline, which names its outputs.
        forwards: Steps the scheduler makes of `n` requested ones.
        skipped: Steps at the start that image-to-image leaves out.
    """

    build: Callable[[], Any]
    inputs: Extra
    size: Mapping[str, Any]
    other: Mapping[str, Any]
    calls: int = 1
    inner: tuple[str, ...] = ("transformer.proj_out",)
    callback: str | None = "callback_on_step_end"
    modular: bool = False
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
    """A tensor that is the same every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(network: nn.Module) -> nn.Module:
    """The network in eval mode, with its all-zero parameters drawn again."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def made(cls: str, seed: int = 0, **config: Any) -> Any:
    """A diffusers model of fixed random weights."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        return filled(getattr(diffusers, cls)(**config))
    finally:
        torch.random.set_rng_state(state)


def pipeline(cls: str, **components: Any) -> Any:
    """A quiet pipeline; text encoders, tokenizers and image encoders that it wants are None."""
    pipe_class = getattr(diffusers, cls)
    expected, _ = pipe_class._get_signature_keys(pipe_class)
    absent = {name: None for name in expected if name not in components}
    pipe = pipe_class(**{**absent, **components})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def counted(pipe: Any, family: Family) -> Iterator[list[str]]:
    """Collects the component name at every real network call, seen from inside the network."""
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


# ------------------------------------------------------------------- components
def flow(**config: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**config)


def unipc() -> Any:
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )


def wan_network(seed: int = 0, in_channels: int = 16) -> Any:
    return made(
        "WanTransformer3DModel",
        seed,
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=in_channels,
        out_channels=16,
        text_dim=32,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )


def wan_vae() -> Any:
    return made(
        "AutoencoderKLWan",
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )


def image_vae(latent_channels: int = 1, **config: Any) -> Any:
    return made(
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


def wan(scheduler: Callable[[], Any] = lambda: flow(shift=3.0)) -> Any:
    return pipeline("WanPipeline", vae=wan_vae(), scheduler=scheduler(), transformer=wan_network())


def wan22() -> Any:
    return pipeline(
        "WanPipeline",
        vae=wan_vae(),
        scheduler=flow(shift=3.0),
        transformer=wan_network(0),
        transformer_2=wan_network(1),
        boundary_ratio=0.7,
    )


def wan_i2v() -> Any:
    return pipeline(
        "WanImageToVideoPipeline",
        vae=wan_vae(),
        scheduler=unipc(),
        transformer=wan_network(in_channels=36),
    )


def wan_v2v() -> Any:
    components = {"vae": wan_vae(), "scheduler": flow(shift=3.0), "transformer": wan_network()}
    return pipeline("WanVideoToVideoPipeline", **components)


def wan_modular() -> Any:
    from diffusers.modular_pipelines.wan import WanBlocks

    blocks = WanBlocks()
    for absent in ("text_encoder", "decode"):
        blocks.sub_blocks.pop(absent)
    pipe = blocks.init_pipeline()
    pipe.update_components(transformer=wan_network(), scheduler=flow(shift=3.0), vae=wan_vae())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux_network(**config: Any) -> Any:
    return made(
        "FluxTransformer2DModel",
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        **config,
    )


def flux(cls: str = "FluxPipeline") -> Any:
    return pipeline(cls, vae=image_vae(), scheduler=flow(), transformer=flux_network())


def qwen() -> Any:
    network = made(
        "QwenImageTransformer2DModel",
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    return pipeline("QwenImagePipeline", scheduler=flow(), transformer=network)


def sd3() -> Any:
    network = made(
        "SD3Transformer2DModel",
        sample_size=32,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
    )
    return pipeline("StableDiffusion3Pipeline", scheduler=flow(), transformer=network)


def cogvideox_network(**config: Any) -> Any:
    return made(
        "CogVideoXTransformer3DModel",
        **{
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 2,
            "text_embed_dim": 32,
            "num_layers": 2,
            "sample_width": 4,
            "sample_height": 4,
            "sample_frames": 9,
            "patch_size": 2,
            "temporal_compression_ratio": 4,
            "max_text_seq_length": 8,
            **config,
        },
    )


def cogvideox(scheduler: str = "CogVideoXDDIMScheduler") -> Any:
    return pipeline(
        "CogVideoXPipeline",
        scheduler=getattr(diffusers, scheduler)(),
        transformer=cogvideox_network(),
    )


def cogvideox_i2v() -> Any:
    vae = made(
        "AutoencoderKLCogVideoX",
        in_channels=3,
        out_channels=3,
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    network = cogvideox_network(in_channels=8, use_rotary_positional_embeddings=True)
    return pipeline(
        "CogVideoXImageToVideoPipeline",
        vae=vae,
        scheduler=diffusers.CogVideoXDPMScheduler(),
        transformer=network,
    )


def hunyuan() -> Any:
    network = made(
        "HunyuanVideoTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )
    return pipeline("HunyuanVideoPipeline", scheduler=flow(shift=7.0), transformer=network)


def ltx() -> Any:
    network = made(
        "LTXVideoTransformer3DModel",
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=32,
    )
    return pipeline("LTXPipeline", scheduler=flow(), transformer=network)


def ada_norm_config() -> dict[str, Any]:
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


def pixart() -> Any:
    return pipeline(
        "PixArtSigmaPipeline",
        scheduler=diffusers.DPMSolverMultistepScheduler(),
        transformer=made("PixArtTransformer2DModel", **ada_norm_config()),
    )


def latte() -> Any:
    return pipeline(
        "LattePipeline",
        scheduler=diffusers.DDIMScheduler(),
        transformer=made("LatteTransformer3DModel", video_length=2, **ada_norm_config()),
    )


def sana() -> Any:
    network = made(
        "SanaTransformer2DModel",
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=8,
    )
    return pipeline("SanaPipeline", scheduler=flow(shift=3.0), transformer=network)


def lumina2() -> Any:
    network = made(
        "Lumina2Transformer2DModel",
        sample_size=4,
        patch_size=2,
        in_channels=4,
        hidden_size=8,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=1,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(64, 32, 32),
        cap_feat_dim=8,
    )
    return pipeline("Lumina2Pipeline", scheduler=flow(), transformer=network)


def hidream() -> Any:
    network = made(
        "HiDreamImageTransformer2DModel",
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=[32, 16],
        text_emb_dim=64,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=(0, 1),
    )
    pipe = pipeline("HiDreamImagePipeline", scheduler=flow(), transformer=network)
    pipe.default_sample_size = 4  # else every request is scaled up to a megapixel
    return pipe


def z_image() -> Any:
    network = made(
        "ZImageTransformer2DModel",
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    return pipeline("ZImagePipeline", scheduler=flow(), transformer=network)


def unet_config() -> dict[str, Any]:
    return {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "in_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "cross_attention_dim": 16,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
    }


def unet(**config: Any) -> Any:
    return made(
        "UNet2DConditionModel",
        sample_size=8,
        out_channels=4,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **unet_config(),
        **config,
    )


def sdxl_config() -> dict[str, Any]:
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
        "use_linear_projection": True,
    }


def sdxl() -> Any:
    return pipeline(
        "StableDiffusionXLPipeline",
        scheduler=diffusers.EulerDiscreteScheduler(),
        unet=unet(**sdxl_config()),
    )


def sdxl_controlnet() -> Any:
    control = made(
        "ControlNetModel",
        conditioning_embedding_out_channels=(4, 8),
        **unet_config(),
        **sdxl_config(),
    )
    return pipeline(
        "StableDiffusionXLControlNetPipeline",
        scheduler=diffusers.EulerDiscreteScheduler(),
        unet=unet(**sdxl_config()),
        controlnet=control,
        vae=sd_vae(),
    )


def sd_vae() -> Any:
    return made(
        "AutoencoderKL",
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=1,
    )


def sd(
    cls: str = "StableDiffusionPipeline", scheduler: str = "DDIMScheduler", **config: Any
) -> Any:
    return pipeline(
        cls,
        scheduler=getattr(diffusers, scheduler)(steps_offset=1, **config),
        unet=unet(),
        vae=sd_vae(),
        requires_safety_checker=False,
    )


def dit() -> Any:
    network = made(
        "DiTTransformer2DModel",
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    scheduler = diffusers.DDIMScheduler()
    return pipeline("DiTPipeline", transformer=network, vae=sd_vae(), scheduler=scheduler)


def unconditional() -> Any:
    network = made(
        "UNet2DModel",
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(4, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=2,
    )
    scheduler = diffusers.DDIMScheduler()
    return pipeline("DDIMPipeline", unet=network, scheduler=scheduler)


def allegro() -> Any:
    network = made(
        "AllegroTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        cross_attention_dim=24,
        sample_width=8,
        sample_height=8,
        sample_frames=8,
        caption_channels=24,
    )
    return pipeline(
        "AllegroPipeline",
        scheduler=diffusers.EulerAncestralDiscreteScheduler(),
        transformer=network,
    )


def mochi() -> Any:
    network = made(
        "MochiTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=32,
        time_embed_dim=4,
        max_sequence_length=16,
    )
    return pipeline("MochiPipeline", scheduler=flow(), transformer=network)


def aura_flow() -> Any:
    network = made(
        "AuraFlowTransformer2DModel",
        sample_size=32,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=256,
    )
    return pipeline("AuraFlowPipeline", scheduler=flow(), transformer=network)


def chroma() -> Any:
    network = made(
        "ChromaTransformer2DModel",
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    return pipeline("ChromaPipeline", vae=image_vae(), scheduler=flow(), transformer=network)


def cogview4() -> Any:
    network = made(
        "CogView4Transformer2DModel",
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=4,
        out_channels=4,
        text_embed_dim=32,
        time_embed_dim=8,
        condition_dim=4,
        rope_axes_dim=(16, 16),
    )
    scheduler = flow(
        base_shift=0.25,
        max_shift=0.75,
        base_image_seq_len=256,
        use_dynamic_shifting=True,
        time_shift_type="linear",
    )
    return pipeline("CogView4Pipeline", scheduler=scheduler, transformer=network)


# ----------------------------------------------------------------------- inputs
def embeds(length: int, width: int, negative: bool = True, mask: str = "", **pooled: int) -> Extra:
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


def with_extra(base: Extra, extra: Extra) -> Extra:
    return lambda batch: {**base(batch), **extra(batch)}


def hidream_inputs(batch: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "prompt_embeds_t5": drawn(batch, 8, 32),
        "prompt_embeds_llama3": drawn(2, batch, 8, 16),
        "pooled_prompt_embeds": drawn(batch, 64),
    }
    return found | {f"negative_{name}": value + 0.5 for name, value in found.items()}


def z_image_inputs(batch: int) -> dict[str, Any]:
    return {
        "prompt_embeds": [drawn(5, 16, seed=k) for k in range(batch)],
        "negative_prompt_embeds": [drawn(5, 16, seed=50 + k) for k in range(batch)],
    }


def square(side: int, **rest: Any) -> dict[str, Any]:
    return {"height": side, "width": side, **rest}


WAN = embeds(8, 32)
FLUX = embeds(6, 32, negative=False, pooled_prompt_embeds=32)
TRUE_CFG = embeds(6, 32, pooled_prompt_embeds=32)
FRAMES = {"num_frames": 9}
POOLED_XL = embeds(6, 16, pooled_prompt_embeds=16)
UNET = ("unet.conv_out",)

FAMILIES: dict[str, Family] = {
    "wan-euler": Family(wan, WAN, square(16, **FRAMES), square(32, **FRAMES), calls=2),
    "wan-unipc": Family(
        functools.partial(wan, unipc), WAN, square(16, **FRAMES), square(32, **FRAMES), calls=2
    ),
    "wan22": Family(
        wan22,
        WAN,
        square(16, **FRAMES),
        square(32, **FRAMES),
        calls=2,
        inner=("transformer.proj_out", "transformer_2.proj_out"),
    ),
    "wan-i2v": Family(
        wan_i2v,
        with_extra(WAN, lambda batch: {"image": drawn(1, 3, 16, 16).sigmoid()}),
        square(16, **FRAMES),
        square(32, **FRAMES),
        calls=2,
    ),
    "flux": Family(flux, FLUX, square(8), square(16)),
    "flux-true-cfg": Family(flux, TRUE_CFG, square(8, true_cfg_scale=3.0), square(16), calls=2),
    "flux-kontext": Family(
        functools.partial(flux, "FluxKontextPipeline"),
        with_extra(FLUX, lambda batch: {"image": drawn(batch, 3, 8, 8).sigmoid()}),
        square(8, max_area=64, _auto_resize=False),
        square(16, max_area=256),
    ),
    "qwen-image": Family(
        qwen,
        embeds(7, 16, mask="prompt_embeds_mask"),
        square(32),
        square(64),
        calls=2,
    ),
    "sd3": Family(sd3, embeds(6, 32, pooled_prompt_embeds=64), square(32), square(64)),
    "cogvideox": Family(cogvideox, embeds(8, 32), square(32, **FRAMES), square(64, **FRAMES)),
    "cogvideox-i2v": Family(
        cogvideox_i2v,
        with_extra(embeds(8, 32), lambda batch: {"image": drawn(batch, 3, 32, 32).sigmoid()}),
        square(32, **FRAMES),
        square(32, num_frames=17),
    ),
    "hunyuan-video": Family(
        hunyuan,
        embeds(6, 16, negative=False, mask="prompt_attention_mask", pooled_prompt_embeds=8),
        square(16, **FRAMES),
        square(32, **FRAMES),
    ),
    "ltx": Family(
        ltx,
        embeds(8, 32, mask="prompt_attention_mask"),
        square(64, **FRAMES),
        square(96, **FRAMES),
    ),
    "pixart-sigma": Family(
        pixart,
        with_extra(
            embeds(6, 32, mask="prompt_attention_mask"), lambda batch: {"negative_prompt": None}
        ),
        square(32, use_resolution_binning=False),
        square(64),
        callback="callback",
    ),
    "sana": Family(
        sana,
        with_extra(
            embeds(6, 8, mask="prompt_attention_mask"), lambda batch: {"negative_prompt": None}
        ),
        square(128, use_resolution_binning=False),
        square(64),
    ),
    "lumina2": Family(
        lumina2,
        embeds(6, 8, mask="prompt_attention_mask"),
        square(32),
        square(64),
        calls=2,
        inner=("transformer.norm_out",),
    ),
    "hidream": Family(
        hidream, hidream_inputs, square(32), square(64), inner=("transformer.final_layer",)
    ),
    "z-image": Family(
        z_image, z_image_inputs, square(64), square(32), inner=("transformer.t_embedder",)
    ),
    "sdxl": Family(sdxl, POOLED_XL, square(64), square(32), inner=UNET),
    "sd": Family(
        functools.partial(sd, clip_sample=False), embeds(6, 16), square(16), square(32), inner=UNET
    ),
    "sd-pndm": Family(
        functools.partial(sd, scheduler="PNDMScheduler", skip_prk_steps=True),
        embeds(6, 16),
        square(16),
        square(32),
        inner=UNET,
        forwards=lambda steps: steps + 1,
    ),
    "sd-heun": Family(
        functools.partial(sd, scheduler="HeunDiscreteScheduler"),
        embeds(6, 16),
        square(16),
        square(32),
        inner=UNET,
        forwards=lambda steps: 2 * steps - 1,
    ),
    "sd-img2img": Family(
        functools.partial(sd, "StableDiffusionImg2ImgPipeline", clip_sample=False),
        with_extra(embeds(6, 16), lambda batch: {"image": drawn(batch, 4, 8, 8)}),
        {"strength": 0.5},
        {"image": drawn(1, 4, 16, 16)},
        inner=UNET,
        skipped=lambda steps: steps // 2,
    ),
    "sdxl-controlnet": Family(
        sdxl_controlnet,
        with_extra(POOLED_XL, lambda batch: {"image": drawn(batch, 3, 16, 16).sigmoid()}),
        square(16),
        square(32),
        inner=UNET,
    ),
    "wan-v2v": Family(
        wan_v2v,
        with_extra(WAN, lambda batch: {"video": drawn(batch, 9, 3, 16, 16).sigmoid()}),
        square(16, strength=0.5),
        {"video": drawn(1, 9, 3, 32, 32).sigmoid(), **square(32)},
        calls=2,
        skipped=lambda steps: steps // 2,
    ),
    "wan-modular": Family(
        wan_modular,
        WAN,
        square(16, **FRAMES),
        square(32, **FRAMES),
        calls=2,
        callback=None,
        modular=True,
    ),
    "flux-img2img": Family(
        functools.partial(flux, "FluxImg2ImgPipeline"),
        with_extra(FLUX, lambda batch: {"image": drawn(batch, 3, 8, 8).sigmoid()}),
        square(8, strength=0.5),
        {"image": drawn(1, 3, 16, 16).sigmoid(), **square(16)},
        skipped=lambda steps: steps // 2,
    ),
    "dit": Family(
        dit,
        lambda batch: {"class_labels": list(range(3, 3 + batch))},
        {"output_type": "np"},
        {"guidance_scale": 2.0},
        inner=("transformer.proj_out_2",),
        callback=None,
    ),
    "unconditional": Family(
        unconditional,
        lambda batch: {"batch_size": batch},
        {"output_type": "np"},
        {"eta": 0.5},
        inner=UNET,
        callback=None,
    ),
    "latte": Family(
        latte,
        with_extra(embeds(6, 32), lambda batch: {"negative_prompt": None}),
        square(32, video_length=2, mask_feature=False),
        square(64),
    ),
    "allegro": Family(
        allegro,
        with_extra(
            embeds(6, 24, mask="prompt_attention_mask"), lambda batch: {"negative_prompt": None}
        ),
        square(32, num_frames=8),
        square(64, num_frames=8),
    ),
    "mochi": Family(
        mochi, embeds(6, 32, mask="prompt_attention_mask"), square(32, num_frames=7), square(48)
    ),
    "aura-flow": Family(
        aura_flow, embeds(6, 32, mask="prompt_attention_mask"), square(32), square(64)
    ),
    "chroma": Family(
        chroma, embeds(6, 32, mask="prompt_attention_mask"), square(8), square(16), calls=2
    ),
    "cogview4": Family(cogview4, embeds(6, 32), square(32), square(64), calls=2),
}

NOT_COVERED: dict[str, str] = {
    "LTX2": "needs a text connector, an audio VAE and a vocoder",
    "Qwen-Image edit": "encodes its prompt together with the image, so embeddings cannot be given",
    "Flux 2, Cosmos, Kandinsky 5, HunyuanVideo 1.5, SkyReels": "no tiny configuration made yet",
    "Stable Cascade": "two pipelines after each other; each is a prior or decoder of its own",
}
"""What has no tiny pipeline here, and why."""
