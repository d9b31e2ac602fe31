"""Benchmarks of jobs over many processes: `erta bench scale` and `erta bench simulate`."""
