"""Flow statistics distance: how far are two sets of videos apart in how they move? VBench has no such dimension."""

from typing import ClassVar

import torch

from hf_motive.metrics.flow_statistics import flow_statistics, frechet_distance
from hf_motive.metrics.module import VIDEO, VideoMetric
from hf_motive.metrics.stand_ins import BACKEND


class FlowStatisticsDistance(VideoMetric):
    DESCRIPTION = """
The Fréchet distance between two sets of videos in sixteen statistics of their DIS optical flow: speed, direction,
acceleration along tracks, what part of the picture moves, the camera. From 0, lower is nearer. Of sets, so no single
video has a number. In the manner of FVMD, without its tracker: its figures are not FVMD's.
"""
    INPUTS = """
    references: Real videos, of the same kinds; as many as there are.

Example:
    >>> from hf_motive import metrics
    >>> metric = metrics.load("flow_statistics_distance")
    >>> metric.compute(predictions=["a.mp4", "b.mp4"], references=["real.mp4", "too.mp4"])["flow_statistics_distance"]
"""
    CITATION = """
@article{liu2024fvmd,
    title={Fr\\'echet Video Motion Distance: A Metric for Evaluating Motion Consistency in Videos},
    author={Liu, Jiahe and Qu, Youran and Yan, Qi and Zeng, Xiaohui and Wang, Lele and Liao, Renjie},
    journal={arXiv preprint arXiv:2407.16124},
    year={2024}
}
"""
    REFERENCE_URLS = ("https://arxiv.org/abs/2407.16124", "https://arxiv.org/abs/1603.03590")
    FEATURES: ClassVar = {"predictions": VIDEO, "references": VIDEO}
    higher_is_better = False

    @property
    def backend(self):
        return f"16 statistics of {BACKEND}"

    def statistics(self, clip, fps):
        """What is compared of one video (F, 3, H, W) uint8: (16,).

        Raises:
            ValueError: It has fewer than three frames.
        """
        return flow_statistics(clip)

    def distance(self, predictions, references):
        """The distance of two sets of `statistics`."""
        return frechet_distance(torch.stack(list(predictions)), torch.stack(list(references)))

    def score(self, clip, fps):
        raise ValueError("flow_statistics_distance is of sets: a video alone has none; use statistics and distance")

    def _compute(self, *, predictions, references=(), **options):
        sets: list[list[torch.Tensor]] = []
        failed: dict[str, str] = {}
        for name, rows in (("predictions", predictions), ("references", references)):
            unread: dict[int, str] = {}
            found: list[torch.Tensor] = []
            for row, clip, fps in self.read(rows, unread):
                try:
                    found.append(self.statistics(clip, fps))
                except ValueError as error:  # ClipError is one
                    unread[row] = str(error)
            if not unread and not found:
                raise ValueError(f"{self.name} compares two sets and was given no {name}: pass {name}=[...]")
            if not found:
                raise ValueError(f"{self.name} could use none of {len(unread)} {name}; row 0: {unread[0]}")
            sets.append(found)
            failed |= {f"{name}[{row}]": reason for row, reason in unread.items()}
        result = {self.key: self.distance(*sets), f"{self.key}_backend": self.backend}
        return {**result, f"{self.key}_failed": failed} if failed else result
