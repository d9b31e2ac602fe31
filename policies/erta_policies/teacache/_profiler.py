"""`TeaCacheProfiler`: measures how the output's change follows from the signal's."""

from __future__ import annotations

from erta_policies.shared import ChangeProfiler, Signal
from erta_policies.teacache._polynomial import KIND


class TeaCacheProfiler(ChangeProfiler):
    """Observes full runs and sums what TeaCache's polynomial is fitted to.

    For every two neighbouring steps of a run it takes the relative L1 change of the signal and that
    of the output, over all steps, prompts and branches together, and keeps the sums from which
    `numpy.polyfit(change of signal, change of output, 4)` can be computed. The output is that of
    the seam: of the block stack at the trunk seam, of the network at the latent seam. Profiles of
    batches merge by adding. Nothing is emitted for a trajectory that failed or did not reach its
    last step.

    Source: TeaCache, arXiv 2411.19108, whose authors use 70 prompts of T2V-CompBench; the authors
    name the degree and the pairs in issues of ali-vilab/TeaCache. Sums instead of pairs, the range
    of the differences and their mean at each step are ours.

    Attributes:
        signal: Whose change is measured; `"latents"` is ours.
        target: Whose change it is to predict.
        per_sample: One pair a sample; else one pair a batch, whose means run over all samples.

    Raises:
        PolicyError: A step was reused.
        InputError: The trajectory does not start at step 0.

    Example:
        >>> TeaCacheProfiler(signal="timestep_embedding").traits.requires
        frozenset({'signal:timestep_embedding'})
    """

    kind = KIND
    signal: Signal = "modulated_input"
