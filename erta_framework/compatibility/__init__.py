"""Which policies can be combined: worked out from what they declare, not from a list.

When to reuse, what the reused output is made of, how that is corrected and how far to integrate are
separate parts. A policy's part follows from its hooks; what it can be combined with follows from
building an engine of the combination and checking it against a driver.
"""

from erta_framework.compatibility._combinations import Chosen, Combination, Composer
from erta_framework.compatibility._overview import OWN, TRUNK, DriverOffer, Overview, make_overview
from erta_framework.compatibility._roles import PLACES, Groups, Role, find_role
from erta_framework.compatibility._specimens import SETTINGS, Specimens, collect_specimens

__all__ = [
    "OWN",
    "PLACES",
    "SETTINGS",
    "TRUNK",
    "Chosen",
    "Combination",
    "Composer",
    "DriverOffer",
    "Groups",
    "Overview",
    "Role",
    "Specimens",
    "collect_specimens",
    "find_role",
    "make_overview",
]
