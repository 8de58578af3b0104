"""The classifier of motions: fitted to exact flow, it holds on estimated flow and does not look at colours."""

from __future__ import annotations

import pytest
import torch

from hf_motive.lab import MODEL_FRAMES, balanced_specs, render_clip
from hf_motive.lab.classifier import CLASSES, as_asked, clip_features, fit_classifier, flow_features
from hf_motive.lab.corruptions import corrupt


@pytest.fixture(scope="module")
def classifier():
    return fit_classifier(66)  # the usual one is fitted to 660


@pytest.fixture(scope="module")
def unseen():
    specs = balanced_specs(22, 920_001, static=1 / len(CLASSES), moving_camera=0, num_frames=MODEL_FRAMES)
    return specs, [render_clip(spec) for spec in specs]


def test_a_second_call_gives_the_same_classifier(classifier):
    assert fit_classifier(66) is classifier


def test_motions_are_told_apart_by_exact_and_by_estimated_flow(classifier, unseen):
    specs, clips = unseen
    labels = torch.tensor([CLASSES.index(spec.motion) for spec in specs])
    exact = classifier(torch.stack([flow_features(clip.flow) for clip in clips]))
    assert (exact == labels).float().mean() >= 0.75
    frames = [clip.frames for clip in clips]
    assert as_asked(frames, specs, classifier).float().mean() >= 0.75
    others = [spec for spec in specs if spec.motion != specs[0].motion][:3]
    assert not as_asked(frames[:1] * 3, others, classifier).all()


def test_probabilities_are_of_the_classes_and_fall_when_a_clip_is_spoilt(classifier, unseen):
    specs, clips = unseen
    rows = [row for row, spec in enumerate(specs) if spec.motion != "rest"][:12]
    asked = torch.tensor([CLASSES.index(specs[row].motion) for row in rows])[:, None]
    clean = classifier.probabilities(clip_features([clips[row].frames for row in rows]))
    assert clean.shape == (12, len(CLASSES)) and torch.allclose(clean.sum(1), torch.ones(12), atol=1e-5)
    for kind in ("shuffled", "frozen"):
        spoilt = classifier.probabilities(clip_features([corrupt(clips[row].frames, kind, row) for row in rows]))
        assert (clean.gather(1, asked) > spoilt.gather(1, asked)).float().mean() >= 0.8


def test_a_still_clip_rests_and_the_side_does_not_matter(classifier, unseen):
    _, clips = unseen
    rest = CLASSES.index("rest")
    assert int(classifier(flow_features(torch.zeros(16, 2, 64, 64))[None])) == rest
    flow = torch.stack([clip.flow for clip in clips])
    mirrored = flow.flip(-1) * torch.tensor([-1.0, 1.0])[:, None, None]
    seen, other = (classifier(torch.stack([flow_features(one) for one in many])) for many in (flow, mirrored))
    assert (seen == other).float().mean() >= 0.9


def test_features_do_not_depend_on_the_size_of_frames(unseen):
    flow = unseen[1][0].flow
    twice = 2 * torch.nn.functional.interpolate(flow, scale_factor=2, mode="nearest")
    assert torch.allclose(flow_features(flow), flow_features(twice), atol=0.1)


def test_what_does_not_fit_is_said(classifier, unseen):
    specs, clips = unseen
    with pytest.raises(ValueError, match=r"at least 17 frames, got \(8, 2, 64, 64\)"):
        flow_features(clips[0].flow[:8])
    with pytest.raises(ValueError, match="a clip needs one spec: got 1 clips and 2 specs"):
        as_asked([clips[0].frames], specs[:2], classifier)
