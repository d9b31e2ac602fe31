"""`erta bench families`: which caches work on which pipelines, side by side."""
