"""Imaging quality, as VBench measures it: are the frames of a video sharp, clean and well exposed?"""

import torch

from hf_motive.metrics.module import VideoMetric
from hf_motive.metrics.networks import device_of, given, name_of
from hf_motive.metrics.preprocessing import RESIZING, for_musiq
from hf_motive.metrics.vbench import CITATION, URL

_NETWORK = (
    "imaging_quality needs network=, MUSIQ as trained on SPAQ: a callable from a frame (1, 3, H, W) in [0, 1] to a "
    'mark in 0..100, or "package.module:name" of one. pyiqa.create_metric("musiq-spaq") is one; its weights are '
    "NON-COMMERCIAL (CC BY-NC-SA 4.0), which is why none are fetched here"
)


class ImagingQuality(VideoMetric):
    DESCRIPTION = """
The mark, from 0 to 100, that MUSIQ (trained on SPAQ) gives each frame: their mean over frames, divided by 100. Higher
is better. It sees single frames: motion is no part of it. The network is the user's: its published weights are for
non-commercial use.
"""
    INPUTS = """
Options:
    network: Required. A callable from a frame (1, 3, H, W) in [0, 1] to a mark in 0..100, or "package.module:name" of
        one: pyiqa.create_metric("musiq-spaq", device=...), whose weights are NON-COMMERCIAL (CC BY-NC-SA 4.0).
    resize: "longer" (the longer side is at most 512: the default, and VBench's), "shorter", "shorter_centercrop",
        "none".
    device, fps.

Example:
    >>> import pyiqa
    >>> from hf_motive import metrics
    >>> network = pyiqa.create_metric("musiq-spaq", device="cuda")
    >>> metric = metrics.load("imaging_quality", network=network, device="cuda")
    >>> metric.compute(predictions=["a.mp4", "b.mp4"])["imaging_quality"]
"""
    CITATION = CITATION
    REFERENCE_URLS = (URL, "https://github.com/chaofengc/IQA-PyTorch")

    def __init__(self, *, network=None, resize="longer", **options):
        if resize not in RESIZING:
            raise ValueError(f"resize must be one of {', '.join(RESIZING)}; got {resize!r}")
        self.network = given(network, _NETWORK)
        super().__init__(**options)
        self.resize = resize

    @property
    def backend(self):
        return name_of(self.network) + (f", resize {self.resize}" if self.resize != "longer" else "")

    @torch.no_grad()
    def score(self, clip, fps):
        device = device_of(self.network, self.device)
        marks = [float(self.network(for_musiq(frame, self.resize).to(device))) for frame in clip.split(1)]
        return sum(marks) / len(marks) / 100
