"""Evaluate modules: what they take, what they give, and the four dimensions that look at frames.

Networks are tiny and random, built from a configuration and saved to a folder: what loads and runs them here loads and
runs the real ones. Formulas and preprocessing are computed a second time, plainly.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import datasets
import evaluate
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hf_motive import metrics
from hf_motive.errors import ClipError
from hf_motive.metrics.consistency import consistency, mean_over_frames
from hf_motive.metrics.module import VideoMetric
from hf_motive.metrics.networks import clip_image, device_of, dino, name_of
from hf_motive.metrics.preprocessing import for_clip, for_dino, for_musiq
from hf_motive.video import load_clip, read_clip, save_clip

from .clips import moving_square, write_corpus

CPU = torch.device("cpu")


class FrameCount(VideoMetric):
    """How many frames a video has: the module that the shared part is tried with."""

    @property
    def backend(self):
        return "counting"

    def score(self, clip, fps):
        assert clip.dtype == torch.uint8 and clip.shape[1] == 3
        self.seen = (clip, fps)
        if len(clip) < 2:
            raise ValueError("a single frame")
        return len(clip) + (fps or 0) / 1000


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    write_corpus(folder, range(3))
    save_clip(folder / "long.mp4", moving_square(9, frames=30), fps=24)
    return [str(path) for path in sorted(folder.glob("*.mp4"))]


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=224, patch_size=16
    )
    folder = tmp_path_factory.mktemp("networks") / "tiny-dino"
    model = ViTModel(config, add_pooling_layer=False).eval()
    torch.nn.init.normal_(model.embeddings.position_embeddings, std=0.5)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A whole CLIP, with its text encoder, as it is published."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    vision = {**size, "image_size": 224, "patch_size": 32, "projection_dim": 16}
    text = {**size, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
    folder = tmp_path_factory.mktemp("networks") / "tiny-clip"
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    return str(folder)


def counting(tmp_path, **options):
    return FrameCount(cache_dir=str(tmp_path), **options)


# The shared part ------------------------------------------------------------------------------------------------


def test_every_kind_of_video_is_a_row(tmp_path, files):
    frames = load_clip(files[0])
    pixels = ((frames + 1) * 127.5).round().to(torch.uint8)
    metric = counting(tmp_path)
    for video in (
        files[0],
        Path(files[0]),
        {"path": files[0], "bytes": None},
        {"path": None, "bytes": Path(files[0]).read_bytes()},
        Path(files[0]).read_bytes(),
        frames,
        pixels,
        pixels.permute(0, 2, 3, 1).numpy(),
        [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).numpy()],
    ):
        result = metric.compute(predictions=[video])
        assert torch.equal(metric.seen[0], pixels), type(video)
        of_a_file = isinstance(video, (str, Path, dict, bytes))
        assert metric.seen[1] == (16.0 if of_a_file else None)
        assert result == {
            "frame_count": pytest.approx(12.016 if of_a_file else 12),
            "frame_count_per_video": [pytest.approx(12.016 if of_a_file else 12)],
            "frame_count_backend": "counting",
        }


def test_a_stacked_array_and_a_column_are_rows(tmp_path, files):
    metric = counting(tmp_path, fps=8)
    stacked = torch.stack([moving_square(0), moving_square(1)])
    assert metric.compute(predictions=stacked)["frame_count_per_video"] == [12.008, 12.008]
    assert metric.compute(predictions=stacked.numpy())["frame_count"] == 12.008
    encoded = datasets.Dataset.from_dict({"video": files}).cast_column("video", datasets.Video(decode=False))
    expected = [12.016, 12.016, 12.016, 30.024]
    for column in (
        encoded["video"],
        encoded["video"][:],
        encoded.cast_column("video", datasets.Video())["video"],  # would be decoded, with torchcodec, if it were read
        encoded.to_iterable_dataset()["video"],
        encoded.with_format("arrow")["video"],
    ):
        assert metric.compute(predictions=column)["frame_count_per_video"] == expected


def test_a_rate_of_its_own_wins(tmp_path, files):
    metric = counting(tmp_path, fps=5)
    metric.compute(predictions=[files[0]])
    assert metric.seen[1] == 16
    metric.compute(predictions=[moving_square(0)])
    assert metric.seen[1] == 5


def test_a_bad_clip_costs_its_row(tmp_path, files):
    (tmp_path / "text.mp4").write_text("no video")
    videos = [
        files[0], "nowhere.mp4", None, moving_square(0) * 100, tmp_path / "text.mp4", moving_square(0)[:1], files[3]
    ]  # fmt: skip
    result = counting(tmp_path / "cache").compute(predictions=videos)
    assert result["frame_count_per_video"] == [12.016, None, None, None, None, None, 30.024]
    assert result["frame_count"] == pytest.approx((12.016 + 30.024) / 2)
    assert {row: reason.split(":")[0] for row, reason in result["frame_count_failed"].items()} == {
        1: "nowhere.mp4 is not there",
        2: "the video has neither bytes nor a path",
        3: result["frame_count_failed"][3].split(":")[0],
        4: "text.mp4 is not a video that FFmpeg can read",
        5: "a single frame",
    }
    assert "expected [-1, 1]" in result["frame_count_failed"][3]


def test_a_score_that_is_no_number_costs_its_row(tmp_path):
    class Broken(FrameCount):
        def score(self, clip, fps):
            return float("nan") if clip.float().mean() > 128 else 1.0

    videos = torch.stack([torch.full((2, 3, 4, 4), 255), torch.zeros(2, 3, 4, 4)]).to(torch.uint8)
    result = Broken(cache_dir=str(tmp_path)).compute(predictions=videos)
    assert result["broken_per_video"] == [None, 1.0] and result["broken_failed"] == {0: "the score is nan"}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.compute(predictions=["nowhere.mp4"]), ValueError, "none of 1 video; row 0: nowhere.mp4 is not"),
        (lambda m: m.compute(predictions=[]), ValueError, "was given no video: pass predictions"),
        (lambda m: m.compute(), ValueError, "was given no video: pass predictions"),
        (lambda m: m.compute(references=["a.mp4"]), ValueError, "was given no video: pass predictions"),
        (lambda m: m.compute(predictions="a.mp4"), ValueError, "is one video .str.: pass a list"),
        (lambda m: m.compute(predictions=moving_square(0)), ValueError, "expected videos .N, F, 3, H, W."),
        (lambda m: m.compute(predictions=3), TypeError, "predictions is a int: pass a list of videos"),
        (
            lambda m: m.compute(predictions=datasets.Dataset.from_dict({"video": ["a.mp4"]})),
            TypeError,
            r'predictions is a whole Dataset: pass its column of videos, dataset\["video"\]',
        ),
        (lambda m: m.compute(predictions=[3]), TypeError, "cannot read a clip from int"),
        (lambda m: m.add_batch(references=["a.mp4"]), ValueError, "takes predictions, and no references"),
        (lambda m: type(m)(netwrok=1), TypeError, "has no option 'netwrok'; its own are fps, device"),
        (lambda m: type(m)(fps=0), ValueError, "fps must be a positive number"),
        (lambda m: type(m)(fps="8"), ValueError, "fps must be a positive number .*, got '8'"),
        (lambda m: type(m)(fps=True), ValueError, "fps must be a positive number .*, got True"),
    ],
)
def test_what_cannot_be_done_says_what_can(tmp_path, call, error, message):
    with pytest.raises(error, match=message):
        call(counting(tmp_path))


def test_a_failed_call_leaves_nothing_behind(tmp_path, files):
    metric = counting(tmp_path)
    with pytest.raises(TypeError):
        metric.compute(predictions=[files[0], 3])
    metric.add(prediction=files[0])
    with pytest.raises(TypeError):
        metric.compute(predictions=[3])
    with pytest.raises(ValueError, match="none of 1 video"):
        metric.compute(predictions=["nowhere.mp4"])
    assert metric.compute(predictions=files[:2])["frame_count_per_video"] == [12.016, 12.016]
    assert not list(tmp_path.rglob("*.arrow"))


def test_rows_are_collected_before_they_are_scored(tmp_path, files):
    metric = counting(tmp_path)
    metric.add(prediction=files[0])
    metric.add_batch(predictions=files[1:3])
    assert metric.compute(predictions=[files[3]])["frame_count_per_video"] == [12.016, 12.016, 12.016, 30.024]
    assert metric.compute(predictions=[files[3]])["frame_count_per_video"] == [30.024]


def test_videos_wait_on_the_disk(tmp_path):
    """Packed arrays are written as they come and read one at a time: memory does not grow with their number."""
    size = 12 * 3 * 64 * 64
    metric = counting(tmp_path)
    tracemalloc.start()
    try:
        for _ in range(20):
            metric.add(prediction=np.zeros((12, 64, 64, 3), np.uint8))
        assert metric.compute()["frame_count"] == 12
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * size


def _share(process_id, files, folder, results):
    datasets.disable_progress_bars()
    metric = FrameCount(cache_dir=folder, num_process=2, process_id=process_id, experiment_id="shares")
    metric.add_batch(predictions=files[:3] if process_id == 0 else files[3:])
    results.put((process_id, metric.compute()))


def test_processes_give_their_shares(tmp_path, files):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_share, args=(i, files, str(tmp_path), results)) for i in range(2)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert found[1] is None
    assert found[0]["frame_count_per_video"] == [12.016, 12.016, 12.016, 30.024]


class Both(FrameCount):
    """A module that compares two sets, which may differ in size."""

    FEATURES = {**FrameCount.FEATURES, "references": FrameCount.FEATURES["predictions"]}  # noqa: RUF012

    def _compute(self, *, predictions, references):
        failed = {}
        counts = [[len(clip) for _, clip, _ in self.read(rows, failed)] for rows in (predictions, references)]
        return self.result(float(sum(counts[0]) - sum(counts[1])), counts, failed)


def test_sets_of_two_sizes(tmp_path, files):
    metric = Both(cache_dir=str(tmp_path))
    result = metric.compute(predictions=files, references=files[2:])
    assert result == {"both": 24, "both_per_video": [[12, 12, 12, 30], [12, 30]], "both_backend": "counting"}
    assert metric.compute(predictions=files[:1], references=files)["both_per_video"] == [[12], [12, 12, 12, 30]]
    assert metric.compute(predictions=[*files, None], references=files)["both_failed"].keys() == {4}


# Loading --------------------------------------------------------------------------------------------------------


def test_the_package_is_light():
    code = "import sys, hf_motive.metrics; print({'torch', 'evaluate', 'transformers', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_names_are_the_modules_that_there_are():
    is_module = re.compile(r"^class \w+\((Video|Embedding)Metric\)", re.M)
    files = Path(metrics.__file__).parent.glob("*.py")
    modules = {file.stem for file in files if is_module.search(file.read_text())}
    assert modules - {"embedding"} <= set(metrics.NAMES)
    table = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()
    assert tuple(re.findall(r"^\| `(\w+)` \| [a-z]", table, re.M)) == metrics.NAMES
    with pytest.raises(ValueError, match="there is no metric 'fvd'; there are subject_consistency, "):
        metrics.load("fvd")


def test_modules_load_and_combine(files, vit, clip_folder):
    subject = evaluate.load(metrics.path("subject_consistency"), network=vit)
    background = metrics.load("background_consistency", network=clip_folder)
    assert isinstance(subject, evaluate.Metric) and subject.name == "subject_consistency"
    assert "DINO" in subject.description and "facebook/dino-vitb16" in subject.inputs_description
    both = evaluate.combine([subject, background])
    together = both.compute(predictions=files)
    assert together == {**subject.compute(predictions=files), **background.compute(predictions=files)}
    assert together["subject_consistency_backend"] == "tiny-dino (transformers)"
    assert together["background_consistency_backend"] == "tiny-clip (transformers)"
    for file in files:
        both.add(prediction=file)
    assert both.compute() == together


def test_weights_that_cannot_be_had_are_known_at_once(tmp_path, clip_folder):
    with pytest.raises(OSError, match="weights of facebook/dino-vitb16 cannot be had: .* Pass network= another id"):
        metrics.load("subject_consistency", cache_dir=str(tmp_path))
    # transformers would draw the weights that are missing at random
    with pytest.raises(OSError, match="tiny-clip is no ViTModel: it lacks .* of its weights"):
        metrics.load("subject_consistency", network=clip_folder)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("aesthetic_quality", {}, "needs head=.* sa_0_4_vit_l_14_linear.pth of https://github.com/LAION-AI"),
        ("aesthetic_quality", {"head": {"weight": torch.zeros(2, 3)}}, r"it holds weight \(2, 3\)"),
        ("imaging_quality", {}, "needs network=, MUSIQ .* NON-COMMERCIAL"),
        ("imaging_quality", {"network": "musiq"}, "needs network=, MUSIQ .* NON-COMMERCIAL"),
        ("imaging_quality", {"network": abs, "resize": "short"}, "resize must be one of longer, "),
        ("background_consistency", {"network": 3}, "network must be an id, a folder, "),
        ("background_consistency", {"dtype": "int8"}, "dtype must be float32, "),
        ("background_consistency", {"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ("background_consistency", {"batch_size": 8.0}, "batch_size must be .* got 8.0"),
        ("background_consistency", {"batch_size": "8"}, "batch_size must be .* got '8'"),
    ],
)
def test_options_that_are_wrong(name, options, message):
    with pytest.raises(ValueError, match=message):
        metrics.load(name, **options)


# Preprocessing ---------------------------------------------------------------------------------------------------


def noise(height, width, frames=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, 3, height, width), generator=generator, dtype=torch.uint8)


def sampled(line, size, scale, kernel):
    """One dimension resampled by hand: each output pixel's centre in the input, its neighbours weighed, edges held."""
    out = torch.zeros(*line.shape[:-1], size, dtype=torch.float64)
    for i in range(size):
        position = (i + 0.5) / scale - 0.5
        if kernel is linear:
            position = max(position, 0.0)
        base = int(np.floor(position))
        for tap in range(base - 1, base + 3):
            out[..., i] += kernel(position - tap) * line[..., min(max(tap, 0), line.shape[-1] - 1)]
    return out


def linear(x):
    return max(0.0, 1 - abs(x))


def cubic(x, a=-0.75):
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def resampled(frames, size, scales, kernel):
    rows = sampled(frames.double().transpose(-1, -2), size[0], scales[0], kernel).transpose(-1, -2)
    return sampled(rows, size[1], scales[1], kernel)


def normalised(frames, mean, deviation):
    return (frames / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)


@pytest.mark.parametrize(
    ("size", "expected"),
    # cut off, not rounded: 224 · 79 / 60 = 294.9
    [((48, 65), (224, 303)), ((95, 48), (443, 224)), ((480, 832), (224, 388)), ((60, 79), (224, 294)),
     ((224, 224), (224, 224))],
)  # fmt: skip
def test_dino_sees_whole_frames(size, expected):
    frames = noise(*size)
    seen = for_dino(frames)
    assert seen.shape[-2:] == expected and seen.dtype == torch.float32
    by_hand = resampled(frames, expected, [e / s for e, s in zip(expected, size, strict=True)], linear)
    assert (seen - normalised(by_hand, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))).abs().max() < 1e-3


@pytest.mark.parametrize(("size", "resized"), [((48, 65), (224, 303)), ((60, 79), (224, 294)), ((95, 48), (443, 224))])
def test_clip_sees_the_centre(size, resized):
    frames = noise(*size)
    seen = for_clip(frames)
    assert seen.shape[-2:] == (224, 224)
    by_hand = resampled(frames, resized, [r / s for r, s in zip(resized, size, strict=True)], cubic)
    assert by_hand.min() < 0 and by_hand.max() > 255  # the overshoot stays, and nothing is rounded to 8 bits
    top, left = (round((side - 224) / 2) for side in resized)  # 303: 39.5, which Python rounds to 40; 294: 35
    by_hand = by_hand[..., top : top + 224, left : left + 224]
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    assert (seen - normalised(by_hand, mean, deviation)).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("size", "resize", "expected"),
    [
        ((300, 512), "longer", (300, 512)),
        ((480, 832), "longer", (295, 512)),  # 295.4
        ((832, 480), "longer", (512, 295)),
        ((560, 600), "shorter", (512, 548)),  # 548.6
        ((560, 600), "shorter_centercrop", (512, 512)),
        ((480, 832), "shorter_centercrop", (480, 832)),
        ((560, 600), "none", (560, 600)),
    ],
)
def test_musiq_sees_at_most_512(size, resize, expected):
    frames = noise(*size)
    seen = for_musiq(frames, resize)
    assert seen.shape[-2:] == expected
    assert seen.min() >= 0 and seen.max() <= 1
    if expected == size:
        assert torch.equal(seen, frames / 255)


# Networks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(224, 224), (224, 388), (398, 224)])
def test_dino_stretches_its_positions_as_dino_does(vit, size):
    """By a scale of (patches + 0.1) / side, where transformers interpolates to the number of patches."""
    from transformers import ViTModel

    model = ViTModel.from_pretrained(vit, add_pooling_layer=False, layer_norm_eps=1e-6).eval()
    frames = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    positions = model.embeddings.position_embeddings.detach()
    grid = positions[0, 1:].unflatten(0, (14, 14)).permute(2, 0, 1)
    patches = [side // 16 for side in size]
    if size[0] != size[1]:
        grid = resampled(grid, patches, [(n + 0.1) / 14 for n in patches], cubic)
    with torch.no_grad():
        tokens = model.embeddings.patch_embeddings(frames) + grid.flatten(1).T.float()
        hidden = torch.cat([(model.embeddings.cls_token + positions[:, :1]).expand(2, -1, -1), tokens], dim=1)
        for layer in model.layers:
            hidden = layer(hidden)
        expected = model.layernorm(hidden)[:, 0]
        found = dino(vit, CPU, torch.float32)(frames)
        theirs = model(frames, interpolate_pos_encoding=True).last_hidden_state[:, 0]
    assert (found - expected).abs().max() < 1e-5
    assert ((found - theirs).abs().max() < 1e-5) == (size[0] == size[1])


def test_a_given_model_is_as_it_was_afterwards(vit, files):
    from transformers import ViTModel

    model = ViTModel.from_pretrained(vit, add_pooling_layer=False, layer_norm_eps=1e-6)
    frames = torch.randn(1, 3, 224, 388)
    with torch.no_grad():
        before = model.eval()(frames, interpolate_pos_encoding=True).last_hidden_state
    result = metrics.load("subject_consistency", network=model).compute(predictions=files)
    assert result == metrics.load("subject_consistency", network=vit).compute(predictions=files)
    with torch.no_grad():
        assert torch.equal(model(frames, interpolate_pos_encoding=True).last_hidden_state, before)


def test_clip_features_are_projected(clip_folder):
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(clip_folder).eval()
    frames = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pooled = model.vision_model(pixel_values=frames).last_hidden_state[:, 0]
        expected = model.visual_projection(model.vision_model.post_layernorm(pooled))
        for network in (clip_folder, model):
            assert torch.allclose(clip_image(network, CPU, torch.float32)(frames), expected, atol=1e-6)


def test_half_precision_and_batches(vit, files):
    whole = metrics.load("subject_consistency", network=vit).compute(predictions=files)["subject_consistency"]
    for options, tolerance in (({"batch_size": 5}, 1e-6), ({"dtype": "bfloat16"}, 2e-2)):
        metric = metrics.load("subject_consistency", network=vit, **options)
        assert metric.compute(predictions=files)["subject_consistency"] == pytest.approx(whole, abs=tolerance)


# Formulas --------------------------------------------------------------------------------------------------------


def features_of(frames):
    """An encoder that is no model: a few pixels of each frame, so that some cosines are below zero."""
    return frames[:, :, 10::100, 10::100].flatten(1)


def plainly(features):
    """The formula, a frame at a time."""
    features = [f.double() / f.double().norm() for f in features]
    total = 0.0
    for t in range(1, len(features)):
        before = max(0.0, float(features[t - 1] @ features[t]))
        first = max(0.0, float(features[0] @ features[t]))
        total += (before + first) / 2
    return total, len(features) - 1


@pytest.mark.parametrize(
    ("name", "transform"), [("subject_consistency", for_dino), ("background_consistency", for_clip)]
)
def test_consistency_is_the_mean_over_all_frames(name, transform):
    videos = [noise(48, 65, frames, seed=frames) for frames in (2, 5, 9)]
    totals = [plainly(features_of(transform(video))) for video in videos]
    result = metrics.load(name, network=features_of).compute(predictions=videos)
    assert result[f"{name}_per_video"] == pytest.approx([total / count for total, count in totals], abs=1e-6)
    weighted = sum(total for total, _ in totals) / sum(count for _, count in totals)
    assert result[name] == pytest.approx(weighted, abs=1e-6)
    assert abs(result[name] - np.mean(result[f"{name}_per_video"])) > 1e-3  # a longer clip counts more
    assert result[f"{name}_backend"] == "features_of (given)"
    assert metrics.load(name, network=f"{__name__}:features_of").compute(predictions=videos) == result


def test_cosines_below_zero_count_as_zero():
    assert consistency(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-2.0, 0.0]])) == pytest.approx(0.25)
    assert consistency(torch.ones(4, 3)) == pytest.approx(1.0)
    assert mean_over_frames([1.0, 0.0], [2, 4]) == 0.25
    with pytest.raises(ValueError, match="a single frame has no consistency"):
        consistency(torch.ones(1, 3))


def test_aesthetic_quality(tmp_path, clip_folder):
    torch.manual_seed(1)
    head = torch.nn.Linear(16, 1)
    torch.save(head.state_dict(), tmp_path / "head.pth")
    videos = [noise(48, 65, frames, seed=frames) for frames in (1, 4)]
    encode = clip_image(clip_folder, CPU, torch.float32)
    with torch.no_grad():
        marks = [head(F.normalize(encode(for_clip(video)), dim=-1)).mean().item() / 10 for video in videos]
    for given in (tmp_path / "head.pth", head.state_dict(), head):
        metric = metrics.load("aesthetic_quality", network=clip_folder, head=given)
        result = metric.compute(predictions=videos)
        assert result["aesthetic_quality_per_video"] == pytest.approx(marks, abs=1e-6)
        assert result["aesthetic_quality"] == pytest.approx(np.mean(marks), abs=1e-6)  # not weighted by frames


def brightness(frame):
    assert frame.shape[0] == 1 and frame.min() >= 0 and frame.max() <= 1
    return frame.mean() * 100


def test_imaging_quality():
    videos = [noise(480, 832, 1), noise(48, 64, 3, seed=1) // 2]
    expected = [np.mean([brightness(for_musiq(frame[None])).item() for frame in video]) / 100 for video in videos]
    for network in (brightness, f"{__name__}:brightness"):
        result = metrics.load("imaging_quality", network=network).compute(predictions=videos)
        assert result["imaging_quality_per_video"] == pytest.approx(expected, abs=1e-6)
        assert result["imaging_quality"] == pytest.approx(np.mean(expected), abs=1e-6)
        assert result["imaging_quality_backend"] == "brightness (given)"
    sizes = []
    whole = metrics.load("imaging_quality", network=lambda frame: sizes.append(frame.shape) or 50, resize="none")
    assert whole.compute(predictions=videos[:1])["imaging_quality"] == 0.5 and sizes == [(1, 3, 480, 832)]


def test_the_leaderboards_scale():
    assert metrics.normalised("subject_consistency", 0.1462) == 0
    assert metrics.normalised("motion_smoothness", 0.9975) == pytest.approx(1)
    assert metrics.normalised("background_consistency", 0.63075) == pytest.approx(0.5)
    assert metrics.normalised("dynamic_degree", 0.3) == pytest.approx(0.3)
    with pytest.raises(ValueError, match="has no 'warp_smoothness'"):
        metrics.normalised("warp_smoothness", 0.5)


def test_a_video_that_is_not_there_keeps_its_row(tmp_path) -> None:
    metric = metrics.load("warp_smoothness")
    for video in (_moving(), None, _moving()):
        metric.add(prediction=video)
    found = metric.compute()
    assert len(found["warp_smoothness_per_video"]) == 3 and list(found["warp_smoothness_failed"]) == [1]


def test_options_of_compute_are_refused() -> None:
    with pytest.raises(TypeError, match="metrics.load\\('warp_smoothness', fps=...\\)"):
        metrics.load("warp_smoothness").compute(predictions=[_moving()], fps=8)


def _moving() -> torch.Tensor:
    return torch.rand(4, 3, 64, 64) * 2 - 1


@pytest.mark.parametrize(
    ("network", "error", "message"),
    [
        (lambda frames: torch.rand(len(frames), 5, 8), ValueError, r"gave torch.float32 of \(3, 5, 8\) for 3 frames"),
        (lambda frames: torch.rand(1, 8), ValueError, r"of \(1, 8\) for 3 frames; expected features \(B, D\)"),
        (lambda frames: torch.ones(len(frames), 8).int(), ValueError, "gave torch.int32"),
        (lambda frames: np.ones((len(frames), 8)), TypeError, "gave a ndarray; expected its features as a tensor"),
    ],
)
def test_features_are_one_a_frame(network, error, message):
    with pytest.raises(error, match=message):
        metrics.load("subject_consistency", network=network).score(noise(32, 32, 3), None)


def test_another_model_of_transformers_is_refused_when_it_is_given(vit, clip_folder):
    from transformers import CLIPModel, CLIPVisionModel, ViTForImageClassification, ViTModel

    for name, network, expected in (
        ("subject_consistency", ViTForImageClassification.from_pretrained(vit), "a ViTModel"),
        ("subject_consistency", CLIPModel.from_pretrained(clip_folder), "a ViTModel"),
        ("background_consistency", ViTModel.from_pretrained(vit), "a CLIPModel or CLIPVisionModelWithProjection"),
        ("background_consistency", CLIPVisionModel.from_pretrained(clip_folder), "a CLIPModel or"),
    ):
        with pytest.raises(TypeError, match=f"network is a {type(network).__name__}, .* pass {expected}"):
            metrics.load(name, network=network)


def test_a_head_that_cannot_be_had_or_does_not_fit(tmp_path, clip_folder):
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html>")
    (tmp_path / "empty.pth").touch()
    torch.save(torch.ones(3), tmp_path / "tensor.pth")
    for name, reason in (
        ("page.pth", "the file is no state dict"),
        ("empty.pth", "the file is no state dict"),
        ("tensor.pth", "the file holds a Tensor"),
        ("nowhere.pth", "there is no such file"),
    ):
        with pytest.raises(OSError, match=f"weights {name} cannot be had: {reason}.* https://github.com/LAION-AI"):
            metrics.load("aesthetic_quality", network=clip_folder, head=tmp_path / name)
    with pytest.raises(TypeError, match="head must be a file, its state dict or a module, got int"):
        metrics.load("aesthetic_quality", network=clip_folder, head=3)
    metric = metrics.load("aesthetic_quality", network=clip_folder, head=torch.nn.Linear(768, 1))
    with pytest.raises(ValueError, match="for features of 768 and tiny-clip .transformers. gives 16: LAION's head"):
        metric.score(noise(32, 32), None)


def test_no_folder_of_the_machine_is_in_a_result(vit):
    from transformers import ViTModel

    model = ViTModel.from_pretrained(vit)
    for place in ("/home/me/gone", "./gone", "~/gone"):
        model.config._name_or_path = place
        assert name_of(model) == "gone (transformers)"
    assert name_of("facebook/dino-vitb16") == "facebook/dino-vitb16 (transformers)"
    with pytest.raises(ClipError) as found:
        read_clip("file:///home/me/folder/a.mp4")
    assert found.value.reason == "a.mp4 cannot be opened: No such file or directory"


def test_all_options_are_named():
    with pytest.raises(TypeError, match="its own are head, network, dtype, batch_size, fps, device"):
        metrics.load("aesthetic_quality", head=torch.nn.Linear(2, 1), netwrok=3)


def test_the_backend_says_what_is_not_vbenchs(vit):
    metric = metrics.load("subject_consistency", network=vit, dtype="bfloat16")
    assert metric.backend == "tiny-dino (transformers), bfloat16"
    assert metrics.load("imaging_quality", network=abs, resize="none").backend == "abs (given), resize none"
    assert metrics.load("imaging_quality", network=abs, resize="longer").backend == "abs (given)"


def test_frames_of_two_sizes_are_told_without_load_clip():
    with pytest.raises(ClipError, match="changes its size, .* bring its frames to one size, or leave it out"):
        read_clip([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)])


def test_files_that_are_no_videos_cost_their_rows(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    videos = [moving_square(0), (tmp_path / "a.npy").read_bytes(), os.fsdecode(b"caf\xe9.mp4")]
    result = counting(tmp_path).compute(predictions=videos)
    assert result["frame_count_per_video"] == [12, None, None]
    assert "is not a video that FFmpeg can read" in result["frame_count_failed"][1]
    assert result["frame_count_failed"][2] == "the name caf\\udce9.mp4 is not UTF-8: rename the file"


def test_frames_go_to_where_a_module_is():
    class Marking(torch.nn.Linear):
        def forward(self, frame):
            self.seen = frame.device
            return 50

    network = Marking(1, 1, device="meta")
    assert metrics.load("imaging_quality", network=network).score(noise(8, 8), None) == 0.5
    assert network.seen == torch.device("meta")
    assert device_of(brightness, CPU) == device_of(torch.nn.ReLU(), CPU) == CPU


def test_a_folder_that_is_damaged(tmp_path, vit, capfd):
    metrics.load("subject_consistency", network=vit)
    assert "Loading weights" not in capfd.readouterr().err  # bars are off
    config, weights = Path(vit, "config.json").read_text(), Path(vit, "model.safetensors").read_bytes()
    for name, (text, data), message in (
        (
            "other",
            (config.replace('"hidden_size": 32', '"hidden_size": 64'), weights),
            "of other sizes than its config",
        ),
        ("none", (None, weights), "of other sizes than its config.json says, or it has none"),
        ("cut", (config, weights[:1000]), "cannot be had: .* Pass network= another id"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(data)
        if text is not None:
            (folder / "config.json").write_text(text)
        with pytest.raises(OSError, match=message):
            metrics.load("subject_consistency", network=str(folder))
