"""What the places inside the networks of a pipeline are, and what they cost in a request."""

from erta_integrations.diffusers.modules._groups import (
    PlaceGroup,
    describe_places,
    inspect_places,
)

__all__ = ["PlaceGroup", "describe_places", "inspect_places"]
