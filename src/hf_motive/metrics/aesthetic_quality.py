"""Aesthetic quality, as VBench measures it: would people find the frames of a video beautiful?"""

import torch

from hf_motive.metrics.embedding import EmbeddingMetric
from hf_motive.metrics.networks import LINEAR_HEAD, clip_image, linear_head
from hf_motive.metrics.preprocessing import for_clip
from hf_motive.metrics.vbench import CITATION, URL

_HEAD = (
    "aesthetic_quality needs head=, the linear layer from CLIP ViT-L/14's features to a mark: the file "
    f"{LINEAR_HEAD}, its state dict, or a module"
)


class AestheticQuality(EmbeddingMetric):
    DESCRIPTION = """
The mark, from 1 to 10, that LAION's predictor gives each frame from its CLIP features: their mean over frames, divided
by 10. Higher is better. It sees single frames: motion is no part of it.
"""
    INPUTS = """
Options:
    head: Required. The file sa_0_4_vit_l_14_linear.pth of https://github.com/LAION-AI/aesthetic-predictor (MIT), its
        state dict, or a module.
    network: In place of openai/clip-vit-large-patch14: an id, a folder, a transformers CLIPModel or
        CLIPVisionModelWithProjection, or a callable (B, 3, 224, 224) -> (B, D).
    dtype, batch_size, device, fps.

Example:
    >>> from hf_motive import metrics
    >>> metric = metrics.load("aesthetic_quality", head="sa_0_4_vit_l_14_linear.pth", device="cuda")
    >>> metric.compute(predictions=["a.mp4", "b.mp4"])["aesthetic_quality"]
"""
    CITATION = CITATION
    REFERENCE_URLS = (URL, "https://github.com/LAION-AI/aesthetic-predictor")
    NETWORK = "openai/clip-vit-large-patch14"

    def __init__(self, *, head=None, **options):
        if head is None:
            raise ValueError(_HEAD)
        super().__init__(**options)
        self.head = linear_head(head, self.device)

    @property
    def backend(self):
        return f"{super().backend} + a linear head (given)"

    def encoder(self):
        return clip_image(self.network, self.device, self.dtype)

    def transform(self, frames):
        return for_clip(frames)

    @torch.no_grad()
    def score(self, clip, fps):
        features = torch.nn.functional.normalize(self.embed(clip), dim=-1)
        width = getattr(self.head, "in_features", features.shape[1])
        if features.shape[1] != width:
            raise ValueError(
                f"the head is for features of {width} and {self.backend.split(' + ')[0]} gives {features.shape[1]}: "
                "LAION's head is for openai/clip-vit-large-patch14"
            )
        features = features.to(next(self.head.parameters(), features).device)
        return (self.head(features).squeeze(-1) / 10).mean().item()
