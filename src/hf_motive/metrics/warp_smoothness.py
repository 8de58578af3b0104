"""Warp smoothness: does a video move as its own flow says, told without weights? VBench has no such dimension."""

from hf_motive.metrics.module import VideoMetric
from hf_motive.metrics.smoothness import smoothness
from hf_motive.metrics.stand_ins import BACKEND, between


class WarpSmoothness(VideoMetric):
    DESCRIPTION = """
A stand-in for motion_smoothness: every second frame is dropped and put back by warping its two neighbours half of the
way along the DIS optical flow between them, which needs no weights and no GPU; (255 - mean absolute difference) / 255.
In [0, 1], higher is better. A video that does not move at all has close to 1. Its figures are not VBench's.
"""
    INPUTS = """
Options:
    fps.

Example:
    >>> from hf_motive import metrics
    >>> metrics.load("warp_smoothness").compute(predictions=["a.mp4", "b.mp4"])["warp_smoothness"]
"""
    REFERENCE_URLS = ("https://arxiv.org/abs/1603.03590",)

    @property
    def backend(self):
        return f"warping along {BACKEND}"

    def score(self, clip, fps):
        return smoothness(clip, between)
