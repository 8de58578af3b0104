"""Subject consistency, as VBench measures it: does what a video shows stay what it is?"""

from hf_motive.metrics.consistency import consistency, mean_over_frames
from hf_motive.metrics.embedding import EmbeddingMetric
from hf_motive.metrics.networks import dino
from hf_motive.metrics.preprocessing import for_dino
from hf_motive.metrics.vbench import CITATION, URL


class SubjectConsistency(EmbeddingMetric):
    DESCRIPTION = """
How alike the DINO features of a video's frames are: each frame after the first is compared with the one before it and
with the first; cosines below zero count as zero. In [0, 1], higher is better. A video that does not move at all has 1:
read it beside dynamic_degree. The mean is weighted by frames.
"""
    INPUTS = """
Options:
    network: In place of facebook/dino-vitb16: an id, a folder, a transformers ViTModel, or a callable
        (B, 3, H, W) -> (B, D).
    dtype, batch_size, device, fps.

Example:
    >>> from hf_motive import metrics
    >>> metric = metrics.load("subject_consistency", device="cuda")
    >>> metric.compute(predictions=["a.mp4", "b.mp4"])["subject_consistency"]
"""
    CITATION = CITATION
    REFERENCE_URLS = (URL, "https://huggingface.co/facebook/dino-vitb16")
    NETWORK = "facebook/dino-vitb16"

    def encoder(self):
        return dino(self.network, self.device, self.dtype)

    def transform(self, frames):
        return for_dino(frames)

    def score(self, clip, fps):
        return consistency(self.embed(clip))

    def mean(self, scores, frames):
        return mean_over_frames(scores, frames)
