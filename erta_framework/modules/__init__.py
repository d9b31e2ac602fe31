"""Places inside a network: blocks, attention, MLPs and stages as sites that policies own."""

from erta_framework.modules._places import KINDS, Kind, Place

__all__ = ["KINDS", "Kind", "Place"]
