"""`erta bench policies`: all installed policies, combinations and other caches at equal calls."""
