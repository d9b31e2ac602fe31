"""`HuggingFaceModel`: models of transformers' kind, unmodified, through a `Cache` object."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from erta_framework.errors import CapabilityError, InputError
from erta_framework.masked import ATTENTION, FIRST_LAYER, SIMILARITY, Rows, TokenStore
from erta_framework.optional_dependencies import require_extra
from erta_framework.session import PREFIX
from erta_integrations.language._llama_layers import find_llama_layers, narrow_layers
from erta_integrations.language._padding import find_places, hide_padding
from erta_integrations.language._position_cache import make_cache
from erta_integrations.language._store import KeyValueStore, compare_values, place_rows

Shift = Literal["un", "un_right"]


class HuggingFaceModel(nn.Module):
    """A model of transformers' kind that fills in masks, attending both ways.

    It takes `input_ids`, `attention_mask`, `position_ids`, `past_key_values` and `use_cache`, and
    returns `logits`: the Llama and Qwen classes do, and so does Dream's. Attention becomes
    bidirectional by a 4-D mask; the model is not touched.

    Args:
        model: The model, in evaluation mode.
        mask_id: The token that stands for a masked position.
        shift: For models such as Dream, whose row j predicts token j + 1: which rows may be reused.
            `"un"` are those whose token j + 1 may be, `"un_right"` those whose token j may be as
            well (arXiv 2505.15781, appendix). None where row j predicts token j.

    Raises:
        CapabilityError: The model has no configuration with a number of layers.

    Example:
        >>> model = HuggingFaceModel.from_folder("models/dream", mask_id=151666)  # doctest: +SKIP
    """

    def __init__(self, model: nn.Module, mask_id: int, shift: Shift | None = None) -> None:
        super().__init__()
        config = getattr(model, "config", None)
        count = getattr(config, "num_hidden_layers", getattr(config, "n_layers", None))
        if config is None or count is None:
            raise CapabilityError(
                f"{type(model).__name__} has no config with num_hidden_layers or n_layers; give a "
                "model of transformers' kind, or write a TokenModel for yours"
            )
        self.model, self._mask_id, self.shift, self._layers = model, mask_id, shift, int(count)
        self.config = config

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        mask_id: int | None = None,
        shift: Shift | None = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> HuggingFaceModel:
        """Load a model from a folder; nothing is fetched.

        Args:
            folder: Holds `config.json` and the weights.
            mask_id: The mask; by default `mask_token_id` of the configuration.
            shift: As in the class.
            trust_remote_code: Whether code in the folder may run.
            **options: Of `from_pretrained`, such as `dtype`.

        Raises:
            InputError: There is no such folder, or the configuration names no mask.
            MissingExtraError: transformers is not installed.
        """
        path = Path(folder)
        if not (path / "config.json").is_file():
            raise InputError(
                f"{path} holds no config.json; give a folder with a model, which is not downloaded"
            )
        require_extra("transformers", extra="language", wanted_by="models of transformers")
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(
            path, local_files_only=True, trust_remote_code=trust_remote_code, **options
        )
        chosen = getattr(model.config, "mask_token_id", None) if mask_id is None else mask_id
        if chosen is None:
            raise InputError(f"the configuration in {path} names no mask_token_id; give mask_id")
        return cls(model.train(False), int(chosen), shift)

    @property
    def mask_id(self) -> int:
        """The token that stands for a masked position."""
        return self._mask_id

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self._layers

    @property
    def capabilities(self) -> frozenset[str]:
        """Attention weights under eager attention; first layers and values if they are Llama's."""
        found = set()
        if getattr(self.config, "_attn_implementation", None) == "eager":
            found.add(PREFIX + ATTENTION)
        if find_llama_layers(self.model) is not None:
            found |= {FIRST_LAYER, PREFIX + SIMILARITY} if self._layers > 1 else {FIRST_LAYER}
        return frozenset(found)

    def fingerprint(self) -> Mapping[str, str]:
        """Class of the network and hash of its configuration."""
        known = {k: repr(v) for k, v in sorted(vars(self.config).items()) if not k.startswith("_")}
        hashed = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]
        return {"network": type(self.model).__name__, "config": hashed}

    def open(self, *, attention: bool = False) -> KeyValueStore:
        """A store for one branch of one request."""
        return KeyValueStore(attention=attention)

    def rows_for(self, wanted: Tensor) -> Tensor:
        """The rows that predict these tokens, `[B, L]`."""
        if self.shift is None:
            return wanted
        # the last row predicts nothing; its keys are refreshed with all others
        rows = torch.cat([wanted[:, 1:], wanted.all(1, keepdim=True)], 1)
        return rows if self.shift == "un" else rows | wanted

    def tokens_for(self, ran: Tensor) -> Tensor:
        """The tokens that these rows predict, `[B, L]`."""
        if self.shift is None:
            return ran
        return torch.cat([torch.zeros_like(ran[:, :1]), ran[:, :-1]], 1)

    def run(
        self,
        ids: Tensor,
        *,
        seen: Tensor | None = None,
        store: TokenStore | None = None,
        rows: Rows | None = None,
        first_layer: int = 0,
    ) -> Tensor:
        """Logits of the rows, `[B, M, V]`.

        Raises:
            CapabilityError: The first layers are to run on every position.
        """
        if first_layer:
            return self._run_above(ids, seen, store, rows, first_layer)
        length, places = ids.shape[1], self._find_places(seen, ids)
        if rows is not None:
            ids, places = rows.gather(ids), rows.gather(places)
        if isinstance(store, KeyValueStore):
            store.begin(rows, length)
        mask = self._make_mask(seen, len(ids), ids.shape[1], length)
        return self._call(ids, mask, places, store)

    def _run_above(
        self,
        ids: Tensor,
        seen: Tensor | None,
        store: TokenStore | None,
        rows: Rows | None,
        first_layer: int,
    ) -> Tensor:
        """A run on every position up to a layer, and on the rows from there on."""
        inner = find_llama_layers(self.model)
        if inner is None:
            raise CapabilityError(
                f"{type(self.model).__name__} cannot run its first {first_layer} layers on every "
                'position; a policy that asks for it requires "first_layer" in its traits'
            )
        batch, length = ids.shape
        if isinstance(store, KeyValueStore):
            store.begin(rows, length, first_layer)
        # a mask with a line for every position, whatever a subclass gives a whole call
        mask = hide_padding(seen, batch, length, length, next(self.model.parameters()))
        places = self._find_places(seen, ids)
        if rows is None:
            return self._call(ids, mask, places, store)
        with narrow_layers(inner, rows, first_layer):
            logits = self._call(ids, mask, places, store)
        return rows.gather(logits) if first_layer >= self._layers else logits

    def _call(self, ids: Tensor, mask: Tensor, places: Tensor, store: TokenStore | None) -> Tensor:
        more: dict[str, Any] = {}
        if store is not None:
            assert isinstance(store, KeyValueStore)
            more = {"past_key_values": make_cache(store), "use_cache": True}
            if store.keeps_attention:
                more["output_attentions"] = True
        else:
            more["use_cache"] = False
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=places,
            **more,
        )
        if isinstance(store, KeyValueStore) and store.keeps_attention:
            for layer, weights in enumerate(output.attentions):
                store.record(layer, weights)
        found: Tensor = output.logits
        return found

    def _find_places(self, seen: Tensor | None, ids: Tensor) -> Tensor:
        return find_places(seen, ids)

    def _make_mask(self, seen: Tensor | None, batch: int, count: int, length: int) -> Tensor:
        return hide_padding(seen, batch, count, length, next(self.model.parameters()))

    def place_logits(self, logits: Tensor, rows: Rows | None, length: int) -> Tensor:
        """Logits `[B, L, V]` by the token that they predict."""
        placed = place_rows(logits, rows, length)
        if self.shift is None:
            return placed
        return torch.cat([torch.zeros_like(placed[:, :1]), placed[:, :-1]], 1)

    def value_similarity(
        self, ids: Tensor, store: TokenStore, seen: Tensor | None
    ) -> tuple[Tensor, float]:
        """Cosine similarity of the values of the second layer to those held, `[B, L]`."""
        assert isinstance(store, KeyValueStore)
        inner = find_llama_layers(self.model)
        assert inner is not None
        x, places = inner.embed_tokens(ids), self._find_places(seen, ids)
        turned = inner.rotary_emb(x, position_ids=places)
        batch, length = ids.shape
        mask = self._make_mask(seen, batch, length, length)
        x = inner.layers[0](x, attention_mask=mask, position_ids=places, position_embeddings=turned)
        if isinstance(x, tuple):
            x = x[0]
        above = inner.layers[1]
        held = store.values(1)
        fresh = above.self_attn.v_proj(above.input_layernorm(x)).view(held.shape)
        return compare_values(fresh, held), 1.0
