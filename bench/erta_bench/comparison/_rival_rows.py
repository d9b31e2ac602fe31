"""Rows of other projects' caches: of diffusers and of cache-dit."""

from __future__ import annotations

import torch

from erta_bench.comparison._contender import INTERVAL, PARTS, RATIOS, SOLVED, Contender, other

ALL_TIMES = (-1, 1001)


RIVALS: tuple[Contender, ...] = (
    other("diffusers FirstBlockCache", "FirstBlockCache", threshold=SOLVED),
    other("diffusers MagCache", "MagCache", mag_ratios=RATIOS, threshold=SOLVED, max_skip_steps=6),
    other("diffusers SeaCache", "SeaCache", threshold=SOLVED),
    other(
        "diffusers TaylorSeer lite",
        "TaylorSeer",
        INTERVAL,
        cache_interval=SOLVED,
        use_lite_mode=True,
        taylor_factors_dtype=torch.float32,
    ),
    other(
        "diffusers TaylorSeer",
        "TaylorSeer",
        INTERVAL,
        cache_interval=SOLVED,
        cache_identifiers=PARTS,
        taylor_factors_dtype=torch.float32,
    ),
    other(
        "diffusers PyramidAttentionBroadcast",
        "PyramidAttentionBroadcast",
        INTERVAL,
        spatial_attention_block_skip_range=SOLVED,
        cross_attention_block_skip_range=SOLVED,
        spatial_attention_timestep_skip_range=ALL_TIMES,
        cross_attention_timestep_skip_range=ALL_TIMES,
    ),
    other(
        "diffusers FasterCache",
        "FasterCache",
        INTERVAL,
        spatial_attention_block_skip_range=SOLVED,
    ),
    other(
        "cache-dit DBCache F1B0",
        "cache-dit",
        Fn_compute_blocks=1,
        Bn_compute_blocks=0,
        residual_diff_threshold=SOLVED,
    ),
    other(
        "cache-dit DBCache F1B0, TaylorSeer",
        "cache-dit",
        Fn_compute_blocks=1,
        Bn_compute_blocks=0,
        residual_diff_threshold=SOLVED,
        calibrator_config="TaylorSeerCalibratorConfig",
    ),
    other(
        "cache-dit DBCache F1B0, FoCa",
        "cache-dit",
        Fn_compute_blocks=1,
        Bn_compute_blocks=0,
        residual_diff_threshold=SOLVED,
        calibrator_config="FoCaCalibratorConfig",
    ),
    other(
        "cache-dit DBCache F1B0, DMD",
        "cache-dit",
        Fn_compute_blocks=1,
        Bn_compute_blocks=0,
        residual_diff_threshold=SOLVED,
        calibrator_config="DMDCalibratorConfig",
    ),
)
