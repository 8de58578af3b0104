"""Temporal jitter: does motion go on from frame to frame, or shake? VBench has no such dimension."""

from hf_motive.metrics.jitter import temporal_jitter
from hf_motive.metrics.module import VideoMetric
from hf_motive.metrics.stand_ins import BACKEND


class TemporalJitter(VideoMetric):
    DESCRIPTION = """
How much of the motion is not carried on from a frame to the next: the change of the DIS optical flow along what moves,
as a share of the motion. In [0, 1], lower is better; even motion has 0. A video that does not move does not shake and
has 0: read it beside flow_dynamic_degree. No weights, no reference.
"""
    INPUTS = """
Example:
    >>> from hf_motive import metrics
    >>> metrics.load("temporal_jitter").compute(predictions=["a.mp4", "b.mp4"])["temporal_jitter"]
"""
    REFERENCE_URLS = ("https://arxiv.org/abs/1603.03590",)
    higher_is_better = False

    @property
    def backend(self):
        return BACKEND

    def score(self, clip, fps):
        return temporal_jitter(clip)
