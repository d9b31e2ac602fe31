"""shapes-wan: diffusers' `WanTransformer3DModel` and a word embedding, small and trained.

The demo, the benchmarks and the tests use it: it is large enough to have real trajectories, and
small enough for two CPU cores.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from erta_framework import Profile
from erta_framework.sampling.solvers import FlowAdamsBashforth2
from erta_framework.session import NetworkSignal
from erta_integrations.diffusers.bundled import InPipeline, PipelineModel
from erta_integrations.shapes_wan.accuracy import measure_words
from erta_integrations.shapes_wan.data import (
    FRAMES,
    SIZE,
    VOCABULARY,
    all_prompts,
    tokenize,
)

WEIGHTS = Path(__file__).parent / "weights" / "shapes-wan.safetensors"
PROFILE = WEIGHTS.with_name("shapes-wan-50.profile.safetensors")
"""Residual profile of the demo's setting: 50 Euler steps of `WanPipeline`, shift 3, guidance 3."""
TEXT_DIM = 64
NETWORK: dict[str, Any] = {
    "patch_size": (1, 4, 4),
    "num_attention_heads": 5,
    "attention_head_dim": 32,
    "in_channels": 3,
    "out_channels": 3,
    "text_dim": TEXT_DIM,
    "freq_dim": 128,
    "ffn_dim": 480,
    "num_layers": 5,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 64,
}

SHIFT = 3.0
TEMPORAL = 4
"""The temporal factor that `WanPipeline` assumes if there is no VAE."""
SCHEDULERS: Mapping[str, Callable[[], Any]] = {
    "flow_euler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=SHIFT),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT
    ),
    "dpmpp": lambda: diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT
    ),
    "heun": lambda: diffusers.FlowMatchHeunDiscreteScheduler(shift=SHIFT),
}
"""`unipc` is configured as in the published Wan pipelines, whose default it is. `dpmpp` is
DPM-Solver++ 2M on the same sigmas. `heun` calls the network twice per step, except in the last."""


class ShapesWan(InPipeline):
    """A Wan transformer over `[B, 3, 5, 16, 16]` pixels and its word embedding.

    Predicts the flow-matching velocity `noise - video`; the timestep of the network is
    `1000 * sigma`, for sigma in [0, 1].

    Example:
        >>> model = ShapesWan()
        >>> model.encode(["a red circle moving left"]).shape
        torch.Size([1, 6, 64])
    """

    prediction = "velocity"

    def __init__(self) -> None:
        super().__init__()
        self.transformer = WanTransformer3DModel(**NETWORK)
        self.words = nn.Embedding(len(VOCABULARY), TEXT_DIM)
        self.weights_hash = "untrained"

    @classmethod
    def pipeline_model(cls) -> PipelineModel:
        """How it runs inside `WanPipeline`."""
        return WAN

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Shape of one sample: (channels, frames, height, width)."""
        return (3, FRAMES, SIZE, SIZE)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompt embeddings `[B, 6, 64]`. Padding is zero, and so is the empty prompt.

        Raises:
            InputError: A prompt has a word outside the vocabulary.
        """
        tokens = tokenize(prompts).to(self.words.weight.device)
        embedded: Tensor = self.words(tokens)
        return embedded * (tokens > 0).unsqueeze(-1)

    def demo_prompts(self) -> tuple[list[str], list[str]]:
        """24 prompts to calibrate on, and the 48 others to sample."""
        order = torch.randperm(72, generator=torch.Generator().manual_seed(0)).tolist()
        prompts = all_prompts()
        shuffled = [prompts[k] for k in order]
        return shuffled[:24], shuffled[24:]

    def shipped_profile(self) -> Path | None:
        """The profile that ships with the weights, for runs through `pipeline_sampler`.

        None if it was made with other weights, or with another version of diffusers, whose
        schedulers may have other options: the profile would be refused, or be wrong.
        """
        if not PROFILE.is_file():
            return None
        made = Profile.load(PROFILE).provenance
        now = {"weights": self.weights_hash, "diffusers": version("diffusers")}
        return PROFILE if all(made.get(key) == value for key, value in now.items()) else None

    def fingerprint(self) -> dict[str, str]:
        """Class of the network, hash of its configuration and hash of its weights file."""
        config = hashlib.sha256(json.dumps(NETWORK, sort_keys=True).encode()).hexdigest()[:16]
        return {"network": "WanTransformer3DModel", "config": config, "weights": self.weights_hash}

    def signals(self) -> dict[str, NetworkSignal]:
        """The embedded timestep `[B, D]` and its projection for all blocks, `[B, 6 * D]`."""
        embedder = self.transformer.condition_embedder

        def embedded(x: Tensor, timestep: Tensor, embeds: Tensor) -> Tensor:
            found: Tensor = embedder.time_embedder(embedder.timesteps_proj(timestep))
            return found

        def projected(x: Tensor, timestep: Tensor, embeds: Tensor) -> Tensor:
            found: Tensor = embedder.time_proj(embedder.act_fn(embedded(x, timestep, embeds)))
            return found

        return {"timestep_embedding": embedded, "timestep_projection": projected}

    def forward(self, x: Tensor, timestep: Tensor, embeds: Tensor) -> Tensor:
        """Velocity `[B, 3, F, H, W]` at latents `x` and timestep `[B]` in [0, 1000]."""
        velocity: Tensor = self.transformer(
            x, timestep=timestep, encoder_hidden_states=embeds, return_dict=False
        )[0]
        return velocity


def save_weights(model: ShapesWan, path: Path, metadata: dict[str, str]) -> None:
    """Write the weights as safetensors in half precision, about 6 MB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, path, metadata={**metadata, "network": json.dumps(NETWORK)})
    path.chmod(0o644)


def load_model(path: Path = WEIGHTS) -> ShapesWan:
    """Load the trained model from a file, in float32 and in evaluation mode.

    Raises:
        FileNotFoundError: There is no weights file.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no weights of shapes-wan at {path}; retrain them with "
            "`python -m erta_bench.shapes_wan.train`"
        )
    model = ShapesWan()
    with safe_open(path, framework="pt") as file:
        model.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})  # noqa: SIM118
    model.weights_hash = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return model.eval().requires_grad_(False)


def weights_metadata(path: Path = WEIGHTS) -> dict[str, str]:
    """What the weights file says of its training: steps, seconds, loss, machine."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def grid(name: str, num_steps: int) -> tuple[float, ...]:
    """The `num_steps + 1` sigmas of a scheduler, for `Sampler(sigmas=...)`.

    Example:
        >>> [round(sigma, 3) for sigma in grid("flow_euler", 3)]
        [1.0, 0.751, 0.009, 0.0]
    """
    scheduler = WAN.make_scheduler(name)
    scheduler.set_timesteps(num_steps)
    return tuple(scheduler.sigmas.tolist())


def get_frames(output: Any) -> Tensor:
    """Take the videos `[B, 3, 5, 16, 16]` from what the pipeline returned."""
    found: Tensor = output.frames
    return found


WAN = PipelineModel(
    name="shapes-wan",
    kind=ShapesWan,
    pipeline="WanPipeline",
    network="transformer",
    settings=dict.fromkeys(("tokenizer", "text_encoder", "vae")),
    schedulers=SCHEDULERS,
    grid=f"shift {SHIFT:g}",
    samples=get_frames,
    solver=FlowAdamsBashforth2(shift=SHIFT),
    arguments=lambda *_: {"num_frames": (FRAMES - 1) * TEMPORAL + 1},
    layout="BCFHW",
    parts=(r"blocks\.\d+\.(attn1|attn2|ffn)",),
    shown=measure_words,
)
