"""Tiny models with random weights, of the kinds that the adapters serve."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

MASK = 31
SIZES = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}


def make_llama(attention: str = "sdpa") -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, attn_implementation=attention)).eval()


def make_qwen() -> nn.Module:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SIZES)).eval()


class DreamLike(nn.Module):
    """Dream's signature: `num_logits_to_keep`, no `logits_to_keep`; row j predicts token j + 1."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make_qwen()
        self.config = self.inner.config

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
        cache_position=None,
        num_logits_to_keep=0,
    ):
        return self.inner(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )


class Rotary(nn.Module):
    """Rotary embeddings by the place in the call, as LLaDA's."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def get_rotary_embedding(self, length: int, device) -> tuple[Tensor, Tensor]:
        rates = 1.0 / (10000.0 ** (torch.arange(0, self.size, 2, device=device) / self.size))
        angles = torch.outer(torch.arange(length, device=device).float(), rates)
        angles = torch.cat([angles, angles], -1)
        return angles.sin()[None, None], angles.cos()[None, None]

    def apply_rotary_pos_emb(self, sin: Tensor, cos: Tensor, x: Tensor) -> Tensor:
        left, right = x.chunk(2, -1)
        return (x * cos + torch.cat([-right, left], -1) * sin).to(x.dtype)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        sin, cos = self.get_rotary_embedding(k.shape[-2], q.device)
        return self.apply_rotary_pos_emb(sin, cos, q), self.apply_rotary_pos_emb(sin, cos, k)


class LLaDABlockLike(nn.Module):
    """A block whose attention is a method on q, k and v, without places."""

    def __init__(self, config) -> None:
        super().__init__()
        self.config, width = config, config.d_model
        self.q_norm = self.k_norm = None
        self.rotary_emb = Rotary(width // config.n_heads)
        self.attn_norm, self.ff_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q_proj, self.attn_out = nn.Linear(width, width), nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width // 2)
        self.v_proj = nn.Linear(width, width // 2)
        self.ff = nn.Linear(width, width)

    def _scaled_dot_product_attention(
        self, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False
    ):
        share = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        return functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal)

    def attention(self, q, k, v, attention_bias=None, layer_past=None, use_cache=False):
        batch, count, width = q.shape
        size = width // self.config.n_heads
        q, k, v = (x.view(batch, count, -1, size).transpose(1, 2) for x in (q, k, v))
        q, k = self.rotary_emb(q, k)
        mixed = self._scaled_dot_product_attention(q, k, v, is_causal=False)
        return self.attn_out(mixed.transpose(1, 2).reshape(batch, count, width)), None

    def forward(self, x):
        inner = self.attn_norm(x)
        attended, _ = self.attention(self.q_proj(inner), self.k_proj(inner), self.v_proj(inner))
        x = x + attended
        return x + functional.silu(self.ff(self.ff_norm(x)))


class LLaDALike(nn.Module):
    """The outside of LLaDA: `config.n_layers`, blocks in a transformer, `.logits`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(n_layers=3, n_heads=4, d_model=32, rope=True)
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(32, 32),
                "blocks": nn.ModuleList(LLaDABlockLike(self.config) for _ in range(3)),
                "ff_out": nn.Linear(32, 32),
            }
        )
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.3)

    def forward(self, input_ids, attention_mask=None):
        x = self.transformer["wte"](input_ids)
        for block in self.transformer["blocks"]:
            x = block(x)
        return SimpleNamespace(logits=self.transformer["ff_out"](x))
