"""Which of the lab's motions is this? A classifier that sees optical flow alone, never colours.

It is fitted to the exact flow of simulated clips, whose motion is known, and to that flow as an estimator may find it
(`wear.py`): so it owes nothing to a VAE or to an estimator, and holds on the DIS flow of clips that a small pipeline
generated. How well: docs/lab.md.

    classifier = fit_classifier()
    classifier(clip_features(clips))                # (N,) indices into CLASSES
    classifier.probabilities(clip_features(clips))  # (N, 11)
    as_asked(clips, specs)                          # (N,) bool
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..motion import DISFlow
from .render import render_flow
from .spec import MODEL_FRAMES, MOTIONS, REST, SIZE, ClipSpec, balanced_specs
from .wear import worn

#: What the classifier tells apart, in the order of its indices.
CLASSES = (*MOTIONS, REST)
SEED = 700_001  # of the clips that it is fitted to; no other set of the lab's is drawn from it
_COLUMNS = 9
_MIRROR = torch.tensor([-1, 1, -1, 1, 1, -1, 1, 1, 1.0])  # what becomes of each column in a mirror
_THRESHOLD = 0.15  # pixels of 64: less is no motion


def flow_features(flow: Tensor) -> Tensor:
    """What moves how, as numbers: for each field the object's mean flow, rate of turning, growth and shear about its
    centre, extent, height in the image and spread.

    Args:
        flow: (F - 1, 2, H, W), exact or estimated, pixels per frame; the first 16 fields are looked at. Frames of any
            size: flow is taken in 64ths of their shorter side.

    Returns:
        (144,), float32.

    Raises:
        ValueError: fewer than 16 fields: a shorter clip does not show its motion.
    """
    if flow.ndim != 4 or flow.shape[1] != 2 or len(flow) < MODEL_FRAMES - 1:
        raise ValueError(f"flow must be (F - 1, 2, H, W) of at least {MODEL_FRAMES} frames, got {tuple(flow.shape)}")
    flow = flow[: MODEL_FRAMES - 1].float()
    height, width = flow.shape[-2:]
    flow = flow * (SIZE / min(height, width))
    flow = flow - flow.flatten(2).median(-1).values[..., None, None]  # the camera's share, near enough
    y, x = torch.meshgrid(torch.arange(height) / height - 0.5, torch.arange(width) / width - 0.5, indexing="ij")
    speed = flow.norm(dim=1)
    weight = speed * (speed > _THRESHOLD)
    total = weight.sum((1, 2)) * (SIZE * SIZE / (height * width))
    share = weight / (weight.sum((1, 2)) + 1e-3)[:, None, None]
    mean = (share[:, None] * flow).sum((2, 3))
    cx, cy = (share * x).sum((1, 2)), (share * y).sum((1, 2))
    dx, dy = x - cx[:, None, None], y - cy[:, None, None]
    spread = (share * (dx**2 + dy**2)).sum((1, 2)) + 1e-3
    u, v = flow[:, 0] - mean[:, :1, None], flow[:, 1] - mean[:, 1:, None]

    def moment(value: Tensor) -> Tensor:
        return (share * value).sum((1, 2)) / spread.sqrt()

    columns = [mean[:, 0], mean[:, 1], moment(dx * v - dy * u), moment(dx * u), moment(dy * v)]
    columns += [moment(dx * v + dy * u), total.sqrt() / SIZE, cy, spread.sqrt()]
    return torch.stack(columns, -1).flatten()


def clip_features(clips: Iterable[Tensor]) -> Tensor:
    """`flow_features` of the DIS flow of clips (F, 3, H, W) in [-1, 1], F at least 17: (N, 144)."""
    estimate = DISFlow(confidence=False)
    return torch.stack([flow_features(estimate(clip[:MODEL_FRAMES]).flow) for clip in clips])


class MotionClassifier:
    """A small perceptron on `flow_features`; the side towards which things move is made not to matter.

    Args:
        features: (N, 144).
        labels: (N,) indices into `CLASSES`.
        seed: Of the weights, of the dropout and of the noise on the features.
        steps: Of the fit.
    """

    def __init__(self, features: Tensor, labels: Tensor, seed: int = 0, steps: int = 400) -> None:
        mirrored = features.unflatten(1, (-1, _COLUMNS)) * _MIRROR
        features = torch.cat([features, mirrored.flatten(1)])
        labels = torch.cat([labels, labels])
        self.mean, self.std = features.mean(0), features.std(0) + 1e-3
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = torch.nn.Sequential(
                torch.nn.Linear(features.shape[1], 96),
                torch.nn.GELU(),
                torch.nn.Dropout(0.3),
                torch.nn.Linear(96, len(CLASSES)),
            )
            optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3, weight_decay=0.05)
            inputs = self._scale(features)
            for _ in range(steps):
                noisy = inputs + 0.3 * torch.randn(inputs.shape)
                loss = F.cross_entropy(self.model(noisy), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        self.model.eval()

    def _scale(self, features: Tensor) -> Tensor:
        return ((features - self.mean) / self.std).clamp(-4, 4)

    @torch.no_grad()
    def probabilities(self, features: Tensor) -> Tensor:
        """(N, 144) to (N, 11), rows of sum 1, columns in the order of `CLASSES`."""
        return self.model(self._scale(features)).softmax(-1)

    def __call__(self, features: Tensor) -> Tensor:
        """(N, 144) to classes (N,), indices into `CLASSES`."""
        return self.probabilities(features).argmax(-1)


@lru_cache(maxsize=4)
def fit_classifier(count: int = 660, seed: int = SEED) -> MotionClassifier:
    """Fit a classifier to `count` simulated clips under a still camera: to their exact flow, and to a worn draw of it.

    About half a minute on one thread; a second call with the same arguments returns the same classifier.
    """
    specs = balanced_specs(count, seed, static=1 / len(CLASSES), moving_camera=0, num_frames=MODEL_FRAMES)
    labels = torch.tensor([CLASSES.index(spec.motion) for spec in specs])
    generator = torch.Generator().manual_seed(seed)
    exact, seen = [], []
    for spec in specs:
        flow = render_flow(spec)
        exact.append(flow_features(flow))
        seen.append(flow_features(worn(flow, generator)))
    return MotionClassifier(torch.stack([*exact, *seen]), labels.repeat(2))


def as_asked(clips: Iterable[Tensor], specs: Sequence[ClipSpec], classifier: MotionClassifier | None = None) -> Tensor:
    """Whether each clip moves as its caption says, by its DIS flow.

    Args:
        clips: Of (F, 3, H, W) in [-1, 1], at least 17 frames at 16 per second; a tensor (N, F, 3, H, W) will do.
        specs: What was asked for, one a clip.
        classifier: `fit_classifier()` where None.

    Returns:
        (N,) bool.
    """
    seen = (classifier or fit_classifier())(clip_features(clips))
    asked = torch.tensor([CLASSES.index(spec.motion) for spec in specs])
    if len(seen) != len(asked):
        raise ValueError(f"a clip needs one spec: got {len(seen)} clips and {len(asked)} specs")
    return seen == asked
