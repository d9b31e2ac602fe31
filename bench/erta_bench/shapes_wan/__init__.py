"""Trains, calibrates and checks shapes-wan, the video model that every user has.

The scripts are `python -m erta_bench.shapes_wan.train`, `.calibrate` and `.check`.
"""
