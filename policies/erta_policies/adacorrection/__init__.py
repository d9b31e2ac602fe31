"""AdaCorrection (arXiv 2602.13357): what a policy reuses is blended with what is fresh."""

from erta_policies.adacorrection._offsets import measure_offset, measure_paper_offset
from erta_policies.adacorrection._policy import AdaCorrection

__all__ = ["AdaCorrection", "measure_offset", "measure_paper_offset"]
