"""Masked language models: a loop of its own over the same sessions, engines and traces."""

from erta_framework.masked._call import (
    ATTENTION,
    KEPT_LOGITS,
    SIMILARITY,
    Branch,
    TokenCall,
    Tracker,
    list_signals,
)
from erta_framework.masked._catalogue import open_decoder_catalogue
from erta_framework.masked._decoder import (
    ORDERS,
    ConfidenceDecoder,
    Decoder,
    LeftToRightDecoder,
    Order,
    RandomDecoder,
)
from erta_framework.masked._loop import MaskedLoop
from erta_framework.masked._model import (
    FIRST_LAYER,
    Rows,
    TextTokenModel,
    TokenModel,
    TokenStore,
    select_rows,
)
from erta_framework.masked._positions import LONG, Held
from erta_framework.masked._request import MaskedRequest, MaskedResult
from erta_framework.masked._sampler import MaskedSampler, MaskedSamples, pad_prompts
from erta_framework.masked._schedule import MaskedPlan, MaskedSchedule

__all__ = [
    "ATTENTION",
    "FIRST_LAYER",
    "KEPT_LOGITS",
    "LONG",
    "ORDERS",
    "SIMILARITY",
    "Branch",
    "ConfidenceDecoder",
    "Decoder",
    "Held",
    "LeftToRightDecoder",
    "MaskedLoop",
    "MaskedPlan",
    "MaskedRequest",
    "MaskedResult",
    "MaskedSampler",
    "MaskedSamples",
    "MaskedSchedule",
    "Order",
    "RandomDecoder",
    "Rows",
    "TextTokenModel",
    "TokenCall",
    "TokenModel",
    "TokenStore",
    "Tracker",
    "list_signals",
    "open_decoder_catalogue",
    "pad_prompts",
    "select_rows",
]
