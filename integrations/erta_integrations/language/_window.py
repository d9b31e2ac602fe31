"""One block of a pipeline as the driver sees it: tokens, the model, and its calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from erta_framework.errors import CapabilityError
from erta_framework.masked import LONG, TokenCall
from erta_integrations.language._hugging_face import HuggingFaceModel

TRACKED = frozenset({"masked", "given", "known_for", "in_block", "block_step"})
SURE = 1e4
"""Logit of the token that stands at a position which did not run, so that nothing replaces it."""


@dataclass(slots=True, eq=False)
class Watched:
    """The tokens of one block's window, and when each became what it is.

    Attributes:
        ids: Tokens of the last call, `[B, W]`.
        given: Positions that were no mask when the block began.
        mask_id: The mask.
        block: Tokens of a block; the last ones of the window.
        changed: Step at whose end a token became what it is, `[B, W]`.
        index: The step that is open.
        finished: The pipeline says not which samples are done.
    """

    ids: Tensor
    given: Tensor
    mask_id: int
    block: int
    changed: Tensor
    index: int = 0
    finished: None = None

    @property
    def offers(self) -> frozenset[str]:
        """Names of the signals."""
        return TRACKED

    def signal(self, name: str) -> Tensor:
        """One of the signals, by name."""
        masked = self.ids == self.mask_id
        if name == "known_for":
            return (self.index - self.changed).clamp(max=LONG).masked_fill(masked, 0)
        if name == "in_block":
            place = torch.arange(self.ids.shape[1], device=self.ids.device)
            return (place >= len(place) - self.block).expand_as(self.ids)
        if name == "block_step":
            return torch.full_like(self.ids[:, 0], self.index)
        return masked if name == "masked" else self.given

    def look(self, ids: Tensor) -> None:
        """Take the tokens of the next call."""
        self.index += 1
        self.changed = torch.where(ids != self.ids, self.index - 1, self.changed)
        self.ids = ids.clone()


class WindowModel(HuggingFaceModel):
    """The pipeline's model; a run on every position gets what the pipeline gave.

    Attributes:
        given: Attention mask `[B, W]` and places `[B, W]` of the call that is open.
    """

    def __init__(self, model: nn.Module, mask_id: int) -> None:
        super().__init__(model, mask_id)
        self.given: tuple[Tensor, Tensor] | None = None

    def _make_mask(self, seen: Tensor | None, batch: int, count: int, length: int) -> Tensor:
        if count == length and self.given is not None:
            return self.given[0]
        return super()._make_mask(seen, batch, count, length)

    def _find_places(self, seen: Tensor | None, ids: Tensor) -> Tensor:
        return super()._find_places(seen, ids) if self.given is None else self.given[1]


class ModelProxy(nn.Module):
    """Stands in `pipe.model`; all but the call is the model's own."""

    def __init__(self, model: nn.Module, answer: Callable[..., Any]) -> None:
        super().__init__()
        self.wrapped = model
        self._answer = answer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("wrapped"), name)

    def forward(
        self, input_ids: Tensor, *, attention_mask: Tensor, position_ids: Tensor, **more: Any
    ) -> Any:
        """Logits as `.logits`, from the driver."""
        if more:
            raise CapabilityError(
                f"the pipeline gives its model {', '.join(sorted(more))}, which this driver does "
                "not know; it is made for LLaDA2Pipeline of diffusers 0.42"
            )
        return SimpleNamespace(logits=self._answer(input_ids, attention_mask, position_ids))


class BlockCall(TokenCall):
    """A call of the pipeline: masks of the block always run, as any of them may be decoded."""

    def run_reusing(self, positions: Tensor, first_layer: int) -> Tensor:
        """Logits `[B, W, V]` from a run on the masks of the block and what is not reused."""
        asked = self.tracker.signal("masked") & self.tracker.signal("in_block")
        return TokenCall.run_reusing(self, positions & ~asked, first_layer)


def keep_tokens(logits: Tensor, fresh: Tensor | None, ids: Tensor) -> Tensor:
    """Logits that name the token that stands there, where nothing ran."""
    if fresh is None:
        return logits
    known = nn.functional.one_hot(ids, logits.shape[-1]).to(logits.dtype) * SURE
    return torch.where(fresh[..., None], logits, known)


def check_attends_ahead(model: nn.Module, ids: Tensor, mask: Tensor, places: Tensor) -> None:
    """Refuse a model whose first tokens do not see the last one of the window.

    Keys of earlier blocks are then exact, and a run on part of the positions would attend to more
    than the model does.

    Raises:
        CapabilityError: Another last token changes no logits of the first position.
    """
    other = ids.clone()
    other[:, -1] = (other[:, -1] + 1) % 2
    outputs = [model(x, attention_mask=mask, position_ids=places).logits for x in (ids, other)]
    first = mask.int().argmax(1)  # the first real token
    rows = torch.arange(len(ids), device=ids.device)
    if bool(mask[:, -1].all()) and torch.equal(outputs[0][rows, first], outputs[1][rows, first]):
        raise CapabilityError(
            f"{type(model).__name__} attends to earlier tokens alone (a changed last token of "
            f"{ids.shape[1]} leaves the logits of the first as they are); its keys of finished "
            "blocks are exact, so use an exact prefix cache"
        )
