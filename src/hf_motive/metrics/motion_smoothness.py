"""Motion smoothness, as VBench measures it: does a video move as an interpolation of it would?"""

from hf_motive.metrics.module import VideoMetric
from hf_motive.metrics.networks import device_of, given, name_of
from hf_motive.metrics.smoothness import smoothness
from hf_motive.metrics.vbench import CITATION, URL

_NETWORK = (
    "motion_smoothness needs network=, the frame interpolation AMT-S: a callable from two frames (1, 3, H, W) in "
    '[0, 1] to the one in the middle, or "package.module:name" of one. Code and weights (amt-s.pth): '
    "https://github.com/MCG-NKU/AMT, for NON-COMMERCIAL use (CC BY-NC 4.0), which is why none are fetched here. "
    "warp_smoothness is a stand-in that needs none"
)


class MotionSmoothness(VideoMetric):
    DESCRIPTION = """
Every second frame is dropped, AMT-S interpolates it from its neighbours, and the less the two differ the smoother the
video moves: (255 - mean absolute difference) / 255. In [0, 1], higher is better. A video that does not move at all has
close to 1: read it beside dynamic_degree. The network is the user's: its published weights are for non-commercial use.
"""
    INPUTS = """
Options:
    network: Required. A callable from two frames (1, 3, H, W) in [0, 1], with sides that are multiples of 16, to the
        one in the middle between them, or "package.module:name" of one. AMT's code and weights are NON-COMMERCIAL
        (CC BY-NC 4.0).
    device, fps.

Example:
    >>> from hf_motive import metrics
    >>> middle = torch.full((1, 1, 1, 1), 0.5, device="cuda")
    >>> amt = lambda a, b: model(a, b, middle, scale_factor=1.0, eval=True)["imgt_pred"]
    >>> metric = metrics.load("motion_smoothness", network=amt, device="cuda")
    >>> metric.compute(predictions=["a.mp4", "b.mp4"])["motion_smoothness"]
"""
    CITATION = CITATION
    REFERENCE_URLS = (URL, "https://github.com/MCG-NKU/AMT")

    def __init__(self, *, network=None, **options):
        self.network = given(network, _NETWORK)
        super().__init__(**options)

    @property
    def backend(self):
        return name_of(self.network)

    def score(self, clip, fps):
        return smoothness(clip, self.network, device_of(self.network, self.device))
