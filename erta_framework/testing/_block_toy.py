"""`BlockFlow`: a toy whose prediction goes through blocks of attention and MLP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from erta_framework.testing._toy import Toy, widen

WIDTH = 8


class BlockFlow(Toy, nn.Module):
    """A small transformer with fixed weights, for policies that own places inside a network.

    Every block adds `gate(sigma) * attention(x)` and then `gate(sigma) * mlp(x)`, with a gate that
    depends on the time, as AdaLN blocks do. Rows of a batch do not see each other.

    Args:
        latent_shape: Shape of one sample, `(C, ...)`.
        depth: Number of blocks.
        time_scale: The network's timestep is `time_scale * sigma`.

    Example:
        >>> BlockFlow().predict(torch.ones(1, 3, 2, 2), 0.5, torch.zeros(1, 3)).shape
        torch.Size([1, 3, 2, 2])
    """

    def __init__(
        self,
        latent_shape: Sequence[int] = (3, 2, 4, 4),
        *,
        depth: int = 3,
        time_scale: float = 1000.0,
    ) -> None:
        nn.Module.__init__(self)
        Toy.__init__(self, latent_shape)
        self.time_scale = time_scale
        draw = torch.Generator().manual_seed(0)
        channels = self.latent_shape[0]
        self.embed = make_linear(channels, WIDTH, draw)
        self.blocks = nn.ModuleList(ToyBlock(draw) for _ in range(depth))
        self.head = make_linear(WIDTH, channels, draw)
        self.requires_grad_(False)

    def settings(self) -> Mapping[str, object]:
        """Depth and time scale."""
        return {"depth": len(self.blocks), "time_scale": self.time_scale}

    def sigma_of(self, timestep: Tensor) -> Tensor:
        """`timestep / time_scale`."""
        return timestep / self.time_scale

    def _predict(self, x: Tensor, sigma: Tensor, shift: Tensor) -> Tensor:
        tokens = (x - shift).flatten(2).transpose(1, 2).to(torch.float32)
        gate = (0.5 + sigma.reshape(-1, 1, 1)).to(torch.float32)
        hidden = self.embed(tokens)
        for block in self.blocks:
            hidden = block(hidden, gate)
        out: Tensor = self.head(hidden).transpose(1, 2).reshape(x.shape)
        return x - shift + out.to(widen(x.dtype))


class ToyBlock(nn.Module):
    """Attention and MLP, each behind a norm and a gate."""

    def __init__(self, draw: torch.Generator) -> None:
        super().__init__()
        self.attn = ToyAttention(draw)
        self.mlp = ToyMLP(draw)

    def forward(self, hidden_states: Tensor, gate: Tensor) -> Tensor:
        """Tokens `[B, N, 8]` to tokens, with a gate `[B or 1, 1, 1]`."""
        hidden = hidden_states
        hidden = hidden + gate * self.attn(functional.layer_norm(hidden, hidden.shape[-1:]))
        after: Tensor = hidden + gate * self.mlp(functional.layer_norm(hidden, hidden.shape[-1:]))
        return after


class ToyAttention(nn.Module):
    """Attention of tokens with each other."""

    def __init__(self, draw: torch.Generator) -> None:
        super().__init__()
        self.qkv = make_linear(WIDTH, 3 * WIDTH, draw)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[B, N, 8]` to `[B, N, 8]`."""
        q, k, v = self.qkv(hidden_states).chunk(3, dim=-1)
        scores = (q @ k.transpose(1, 2) / WIDTH**0.5).softmax(-1)
        mixed: Tensor = scores @ v
        return mixed


class ToyMLP(nn.Module):
    """An MLP with one hidden layer, on every token alike."""

    def __init__(self, draw: torch.Generator) -> None:
        super().__init__()
        self.up = make_linear(WIDTH, 2 * WIDTH, draw)
        self.down = make_linear(2 * WIDTH, WIDTH, draw)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[B, N, 8]` to `[B, N, 8]`."""
        out: Tensor = self.down(functional.gelu(self.up(hidden_states)))
        return out


def make_linear(inputs: int, outputs: int, draw: torch.Generator) -> nn.Linear:
    """A linear layer with weights from a generator of its own."""
    layer = nn.Linear(inputs, outputs, device="meta")  # draws from no global generator
    weight = torch.randn(outputs, inputs, generator=draw) / inputs**0.5
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = nn.Parameter(0.1 * torch.randn(outputs, generator=draw), requires_grad=False)
    return layer
