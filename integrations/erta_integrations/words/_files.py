"""The weights that ship with the package, and those of a new training."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from erta_integrations.words._network import Size, WordsNetwork

FOLDER = Path(__file__).with_name("weights")


def find_weights(task: str) -> Path:
    """The file of the weights for a task, such as `words`."""
    return FOLDER / f"{task}.safetensors"


def save_network(network: WordsNetwork, path: Path, metadata: dict[str, str]) -> None:
    """Write the weights as safetensors in half precision, about 250 kB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    save_file(tensors, path, metadata={**metadata, "size": json.dumps(asdict(network.size))})
    path.chmod(0o644)


def load_network(path: Path) -> tuple[WordsNetwork, str]:
    """A trained network in float32 and evaluation mode, and the hash of its file.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no weights at {path}; train them with `python -m erta_bench.masked.train {path.stem}`"
        )
    with safe_open(path, framework="pt") as file:
        network = WordsNetwork(Size(**json.loads(file.metadata()["size"])))
        network.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})  # noqa: SIM118
    found = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return network.eval().requires_grad_(False), found


def read_training(path: Path) -> dict[str, str]:
    """What a weights file says of its training: steps, seconds, loss, machine."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})
