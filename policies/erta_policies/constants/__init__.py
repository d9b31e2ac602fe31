"""Published constants, one JSON file a method, each with its source and licence."""

from erta_policies.constants.load import models, published

__all__ = ["models", "published"]
