"""Published constants, one JSON file a method, each with its source and licence."""

from erta_policies.constants._load import models, read_published

__all__ = ["models", "read_published"]
