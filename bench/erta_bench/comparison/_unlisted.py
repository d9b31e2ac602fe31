"""Why an installed policy has no row."""

from __future__ import annotations

from collections.abc import Mapping

UNLISTED: Mapping[str, str] = {
    "module_table": "the table of febcache, which has rows",
    "channel_correction": "the correction of cachequant, which has rows",
    "grouped_steps": "the schedule of cachequant, which has rows",
    "centered_steps": "another schedule of deepcache, which has rows",
    "constant": "stands branches in that are known for one model, and has nothing to solve for",
    "band_correction": "the part of freqca inside the network, which has a row",
    "growing_window": "the schedule of spectrum, which has rows",
    "drift_gate": "the gate of fastcache, which has rows",
    "token_split": "the tokens of fastcache, which has rows, and nothing reused in whole blocks",
    "clusca": "the recipe of cluster_refresh, which has a row, for intervals of whole steps",
    "fitted_schedule": "the schedule of fitted, which has a row",
    "prompt_threshold": "an adapter of another rule; reference prompts of this model mean nothing",
    "prompttea_rule": "the rule of prompttea, which has a row",
    "seacache_rule": "the rule of seacache, which has rows",
    "every_branch_agrees": "an adapter of another rule, which changes nothing where one decides",
    "probe_rule": "the rule of dicache, which has a row",
    "teacache_rule": "the rule of teacache, which has rows",
    **dict.fromkeys(
        (
            "d2cache",
            "dkvcache",
            "dkvcache_greedy",
            "dkvcache_pd",
            "dkvcache_prefill",
            "dllmcache",
            "fastdllm_dual",
            "fastdllm_prefix",
        ),
        "for masked language models, which `erta bench masked` compares",
    ),
    "teacache_schedule": "the same steps as teacache on the timestep's embedding, known beforehand",
}
"""Installed skip rules and recipes without a row, and why."""
