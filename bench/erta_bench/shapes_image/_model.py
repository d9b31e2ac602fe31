"""What both image models share: words, prompts, fingerprint and weights file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from erta_bench.shapes_image._data import VOCABULARY, all_prompts, tokenize
from erta_integrations.diffusers.bundled import InPipeline
from erta_integrations.shapes_wan.data import SIZE

FOLDER = Path(__file__).parent / "weights"
TEXT_DIM = 64
M = TypeVar("M", bound="ShapesImage")


class ShapesImage(InPipeline):
    """A word embedding and what both image models share, over `[B, 3, 16, 16]` pixels."""

    name: ClassVar[str]
    network_class: ClassVar[str]
    prediction: ClassVar[str]
    config: ClassVar[dict[str, Any]]

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(len(VOCABULARY), TEXT_DIM)
        self.weights_hash = "untrained"

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of one sample: (channels, height, width)."""
        return (3, SIZE, SIZE)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompt embeddings `[B, 4, 64]`; padding words, hence the empty prompt, are zero.

        Raises:
            InputError: A prompt has a word outside the vocabulary.
        """
        return self.embed(tokenize(prompts).to(self.words.weight.device))

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings `[B, 4, 64]` of word indices `[B, 4]`."""
        embedded: Tensor = self.words(tokens)
        return embedded * (tokens > 0).unsqueeze(-1)

    def demo_prompts(self) -> tuple[list[str], list[str]]:
        """Prompts to calibrate on (24) and held-out prompts (48); they share none."""
        prompts = all_prompts()
        order = torch.randperm(72, generator=torch.Generator().manual_seed(0)).tolist()
        shuffled = [prompts[k] for k in order]
        return shuffled[:24], shuffled[24:]

    def fingerprint(self) -> dict[str, str]:
        """Network class, hash of its configuration and of its weights file."""
        config = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()[:16]
        return {"network": self.network_class, "config": config, "weights": self.weights_hash}


def find_weights(model: type[ShapesImage]) -> Path:
    """The weights file of a model, which comes with the package."""
    return FOLDER / f"{model.name}.safetensors"


def save_weights(model: ShapesImage, path: Path, metadata: dict[str, str]) -> None:
    """Write the weights as half precision safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, path, metadata={**metadata, "network": json.dumps(model.config)})
    path.chmod(0o644)


def load_model(model: type[M], path: Path | None = None) -> M:
    """A trained model in float32, in evaluation mode, from a file; never from the network.

    Raises:
        FileNotFoundError: There is no weights file.
    """
    found = path if path is not None else find_weights(model)
    if not found.is_file():
        raise FileNotFoundError(
            f"no weights of {model.name} at {found}; train them with "
            f"`python -m erta_bench.shapes_image.train {model.name}`"
        )
    made = model()
    with safe_open(found, framework="pt") as file:
        made.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})  # noqa: SIM118
    made.weights_hash = hashlib.sha256(found.read_bytes()).hexdigest()[:16]
    return made.eval().requires_grad_(False)


def read_images(output: Any) -> Tensor:
    """The images `[B, 3, 16, 16]` in what a pipeline returned."""
    found: Tensor = output.images
    return found
