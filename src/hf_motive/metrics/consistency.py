"""How much alike the frames of a clip are: the formula of subject and of background consistency."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def consistency(features: Tensor) -> float:
    """Mean likeness of each frame after the first to the one before it and to the first.

    Args:
        features: (F, D), one a frame, of any length.

    Returns:
        The mean over frames of ½ [max(0, cos(before, now)) + max(0, cos(first, now))], in [0, 1].

    Raises:
        ValueError: There are fewer than two frames, which are like nothing.
    """
    if len(features) < 2:
        raise ValueError("a single frame has no consistency: it takes two or more")
    features = F.normalize(features, dim=-1)
    now = features[1:]
    before = F.cosine_similarity(features[:-1], now).double().clamp(min=0)
    first = F.cosine_similarity(features[:1], now).double().clamp(min=0)
    return ((before + first) / 2).mean().item()


def mean_over_frames(scores: Sequence[float], frames: Sequence[int]) -> float:
    """The mean over all compared frames of all clips: a clip counts as often as it has frames after its first.

    Args:
        scores: A clip's consistency.
        frames: Its frames, two or more.
    """
    compared = [count - 1 for count in frames]
    return sum(score * count for score, count in zip(scores, compared, strict=True)) / sum(compared)
