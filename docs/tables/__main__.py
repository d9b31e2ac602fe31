"""Print the commands that measure every table again: `python -m tables` with `docs` on the path."""

from __future__ import annotations

from tables.markers import list_commands

if __name__ == "__main__":
    print("\n".join(list_commands()))
