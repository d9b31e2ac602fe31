"""Caches for masked language models, compared: `erta bench masked`."""
