"""Background consistency, as VBench measures it: does the scene of a video stay what it is?"""

from hf_motive.metrics.consistency import consistency, mean_over_frames
from hf_motive.metrics.embedding import EmbeddingMetric
from hf_motive.metrics.networks import clip_image
from hf_motive.metrics.preprocessing import for_clip
from hf_motive.metrics.vbench import CITATION, URL


class BackgroundConsistency(EmbeddingMetric):
    DESCRIPTION = """
How alike the CLIP features of a video's frames are: each frame after the first is compared with the one before it and
with the first; cosines below zero count as zero. In [0, 1], higher is better. A video that does not move at all has 1:
read it beside dynamic_degree. The mean is weighted by frames.
"""
    INPUTS = """
Options:
    network: In place of openai/clip-vit-base-patch32: an id, a folder, a transformers CLIPModel or
        CLIPVisionModelWithProjection, or a callable (B, 3, 224, 224) -> (B, D).
    dtype, batch_size, device, fps.

Example:
    >>> from hf_motive import metrics
    >>> metric = metrics.load("background_consistency", device="cuda")
    >>> metric.compute(predictions=["a.mp4", "b.mp4"])["background_consistency"]
"""
    CITATION = CITATION
    REFERENCE_URLS = (URL, "https://huggingface.co/openai/clip-vit-base-patch32")
    NETWORK = "openai/clip-vit-base-patch32"

    def encoder(self):
        return clip_image(self.network, self.device, self.dtype)

    def transform(self, frames):
        return for_clip(frames)

    def score(self, clip, fps):
        return consistency(self.embed(clip))

    def mean(self, scores, frames):
        return mean_over_frames(scores, frames)
