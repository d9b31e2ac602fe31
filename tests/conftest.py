"""Settings for all tests."""

from hypothesis import settings

# no test asserts anything about time
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
