"""Dynamic degree, as VBench measures it: in how many videos does enough move?"""

from hf_motive.metrics.dynamics import is_dynamic
from hf_motive.metrics.module import VideoMetric
from hf_motive.metrics.networks import device_of, imported
from hf_motive.metrics.raft import backend, raft
from hf_motive.metrics.vbench import CITATION, URL


class DynamicDegree(VideoMetric):
    DESCRIPTION = """
The share of videos in which enough moves, by RAFT's optical flow: about 8 frames a second are looked at, and in a
quarter of the pairs the fastest 5 % of pixels go further than 6 pixels at a shorter side of 256. A video has 0 or 1.
How much moves is no merit in itself. A camera that moves around a still object counts; of two frames any video counts.
"""
    INPUTS = """
Options:
    network: In place of torchvision's raft_large with the weights C_T_V1 (pip install "hf-motive[raft]"): the file of
        such weights, the module, or a callable from two frames (1, 3, H, W) in 0..255, with sides that are multiples
        of 8, to the flow (1, 2, H, W) in pixels; or "package.module:name" of one.
    device, fps. A video that carries no rate needs fps.

Example:
    >>> from hf_motive import metrics
    >>> metric = metrics.load("dynamic_degree", device="cuda")
    >>> metric.compute(predictions=["a.mp4", "b.mp4"])["dynamic_degree"]
"""
    CITATION = CITATION
    REFERENCE_URLS = (URL, "https://github.com/princeton-vl/RAFT")

    def __init__(self, *, network=None, **options):
        super().__init__(**options)
        self.network = network
        self._flow = None

    @property
    def backend(self):
        return backend(self.network)

    def prepare(self):
        self._flow = self._flow or raft(self.network, self.device)
        return self._flow

    def score(self, clip, fps):
        return float(is_dynamic(clip, fps, self.prepare(), device_of(imported(self.network), self.device)))
