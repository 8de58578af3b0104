"""Object permanence: does what is there stay there? VBench has no such dimension."""

from hf_motive.metrics.module import VideoMetric
from hf_motive.metrics.permanence import object_permanence
from hf_motive.metrics.stand_ins import BACKEND


class ObjectPermanence(VideoMetric):
    DESCRIPTION = """
How much of what a frame shows is found again in the next, and the other way about, along the DIS optical flow, at the
worst place and time of the video: an object that is gone, or another one, from one frame to the next decides. In
[0, 1], higher is better. A video that does not move has 1: read it beside flow_dynamic_degree. No weights, no masks.
"""
    INPUTS = """
Example:
    >>> from hf_motive import metrics
    >>> metrics.load("object_permanence").compute(predictions=["a.mp4", "b.mp4"])["object_permanence"]
"""
    REFERENCE_URLS = ("https://arxiv.org/abs/1603.03590",)

    @property
    def backend(self):
        return f"search along {BACKEND}"

    def score(self, clip, fps):
        return object_permanence(clip)
