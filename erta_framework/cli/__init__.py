"""The `erta` command."""

from erta_framework.cli.app import app, main

__all__ = ["app", "main"]
