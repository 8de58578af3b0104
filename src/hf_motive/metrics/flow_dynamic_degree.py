"""Flow dynamic degree: in how many videos does enough move, told without weights? VBench has no such dimension."""

from hf_motive.metrics.dynamics import is_dynamic
from hf_motive.metrics.module import VideoMetric
from hf_motive.metrics.stand_ins import BACKEND, dis_flow


class FlowDynamicDegree(VideoMetric):
    DESCRIPTION = """
A stand-in for dynamic_degree: the same measure of DIS optical flow, which needs no weights and no GPU. A video has 0
or 1, the set has the share of 1. Its figures are not VBench's: DIS finds less of what moves far.
"""
    INPUTS = """
Options:
    fps. A video that carries no rate needs it.

Example:
    >>> from hf_motive import metrics
    >>> metrics.load("flow_dynamic_degree").compute(predictions=["a.mp4", "b.mp4"])["flow_dynamic_degree"]
"""
    REFERENCE_URLS = ("https://arxiv.org/abs/1603.03590",)

    @property
    def backend(self):
        return BACKEND

    def score(self, clip, fps):
        return float(is_dynamic(clip, fps, dis_flow))
