"""Benchmarks: every one prints a table and writes flat JSON records, so that claims can be checked.

`erta bench --help` lists them; `ablation` and `overhead` are the functions behind the commands.
"""
