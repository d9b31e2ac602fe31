"""What each part of ERTACache adds to quality at equal network calls: the paper's ablation.

`run_ablation` runs it on the own loop. `erta_bench.ablation.pipeline` runs it through an unmodified
`WanPipeline` beside the own loop; it is imported by itself, since it needs diffusers.
"""

from erta_bench.ablation._ablation import run_ablation

__all__ = ["run_ablation"]
