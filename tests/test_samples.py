"""Clips that a pipeline generates while it is trained, and two folders of them side by side."""

from __future__ import annotations

import html.parser
import json
import logging
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

from hf_motive.pipelines import PipelineStep
from hf_motive.training import generating
from hf_motive.training.compare import compare, side_by_side
from hf_motive.training.samples import Sample, Sampler, read_samples
from hf_motive.video import load_clip, save_clip
from tests.clips import moving_square
from tests.families.common import example_pixels
from tests.families.registry import variants

CAPTIONS = ["a red ball bounces", "a blue cube: rolls / falls", "球が跳ねる"]


def step_of(name: str, dtype: torch.dtype = torch.float32, **call_kwargs) -> tuple[PipelineStep, dict]:
    variant = variants()[name]
    row = variant.row(example_pixels(variant.num_frames, variant.height, variant.width))
    step = PipelineStep(
        variant.build(dtype=dtype),
        num_frames=variant.num_frames,
        height=variant.height,
        width=variant.width,
        conditioning=variant.conditioning,
        call_kwargs={**variant.call_kwargs, **call_kwargs},
        example=row,
        check=False,
    )
    return step, row


@pytest.fixture(scope="module")
def wan() -> PipelineStep:
    return step_of("wan2.1")[0]


# ---------------------------------------------------------------------------------------------------------- one clip


def test_a_clip_is_what_the_pipeline_generates(wan):
    own = wan.pipeline(
        "a red ball", num_frames=9, height=32, width=48, num_inference_steps=3, guidance_scale=4.0, output_type="np",
        generator=torch.Generator().manual_seed(7),
    )  # fmt: skip
    expected = torch.from_numpy(2 * own.frames[0] - 1).permute(0, 3, 1, 2)
    clip = Sampler(wan, steps=3, guidance=4.0).clip("a red ball", seed=7)
    assert clip.shape == (9, 3, 32, 48) and clip.dtype == torch.float32
    assert torch.equal(clip, expected.clamp(-1, 1))


def test_guidance_steps_and_seed_change_the_clip(wan):
    clips = [
        Sampler(wan, steps=3).clip("a red ball"),
        Sampler(wan, steps=3, guidance=1.0).clip("a red ball"),
        Sampler(wan, steps=4).clip("a red ball"),
        Sampler(wan, steps=3).clip("a red ball", seed=1),
        Sampler(wan, steps=3).clip("a blue cube"),
    ]
    assert all(not torch.equal(clips[0], other) for other in clips[1:])
    assert torch.equal(clips[0], Sampler(wan, steps=3, guidance=5.0).clip("a red ball"))  # the pipeline's default


#: Conditioning by the clip, by rows, two experts, guidance by an embedded scale, by a guider, frames not in a list,
#: noise from the global generator.
KINDS = (
    "wan2.1-i2v",
    "wan2.2-a14b",
    "wan2.1-vace",
    "framepack",
    "wan2.1-modular",
    "latte",
    "cosmos3-text",
    "i2vgen-xl",
)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_pipeline_generates_and_is_left_as_it_was(name):
    step, row = step_of(name)
    pipe = step.pipeline
    sampler = Sampler(step, steps=2, guidance=3.5)
    for denoiser in step.denoisers.values():
        denoiser.train()
        next(denoiser.children()).eval()  # a part that is kept out of training
    modes = [module.training for denoiser in step.denoisers.values() for module in denoiser.modules()]
    kept = {key: value for key, value in vars(pipe).items() if key in ("scheduler", "guider", "_progress_bar_config")}
    scheduler = {key: value for key, value in vars(pipe.scheduler).items() if isinstance(value, int | torch.Tensor)}
    noise, state = step.noise(0), torch.get_rng_state()
    latents = step.encode(row["pixels"])
    loss = step.loss(latents, "a red ball", noise=noise, timestep=600, example=row).loss

    clip = sampler.clip("a red ball", row)
    variant = variants()[name]
    assert clip.shape == (variant.num_frames, 3, variant.height, variant.width)
    assert clip.std() > 0.01 and clip.abs().max() <= 1
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(1)
    assert torch.equal(clip, sampler.clip("a red ball", row))
    assert not torch.equal(clip, Sampler(step, steps=2, guidance=1.5).clip("a red ball", row))

    assert modes == [module.training for denoiser in step.denoisers.values() for module in denoiser.modules()]
    assert all(vars(pipe).get(key) is value for key, value in kept.items())
    assert all(getattr(pipe.scheduler, key) is value for key, value in scheduler.items())
    again = step.loss(latents, "a red ball", noise=noise, timestep=600, example=row).loss
    assert torch.equal(loss, again)


def test_a_clip_shows_no_dropout(wan):
    dropouts = [module for module in wan.pipeline.transformer.modules() if isinstance(module, torch.nn.Dropout)]
    assert dropouts
    before = [module.p for module in dropouts]
    without = Sampler(wan, steps=2).clip("a red ball")
    try:
        for module in dropouts:
            module.p = 0.5
        wan.pipeline.transformer.train()
        assert torch.equal(Sampler(wan, steps=2).clip("a red ball"), without)
    finally:
        wan.pipeline.transformer.eval()
        for module, p in zip(dropouts, before, strict=True):
            module.p = p


def test_no_progress_bar_and_the_users_own_comes_back(wan, capfd):
    wan.pipeline.set_progress_bar_config(desc="mine")
    try:
        Sampler(wan, steps=2).clip("a red ball")
        assert "mine" not in capfd.readouterr().err
        assert wan.pipeline._progress_bar_config == {"desc": "mine"}
    finally:
        wan.pipeline.set_progress_bar_config(disable=True)


@pytest.mark.parametrize("name", ["cogvideox-ddim", "ltx-modular"])
def test_a_denoiser_in_float32_beside_parts_in_half_precision(name):
    """As a training in full leaves it: without autocast these two fail."""
    step, row = step_of(name, torch.bfloat16)
    half = Sampler(step, steps=2).clip("a red ball", row)
    for denoiser in step.denoisers.values():
        denoiser.float()
    step.pipeline.vae.float()
    decode = vars(step.pipeline.vae).get("decode")
    seen = []

    def watch(module, args):
        seen.append((args[0].dtype, torch.is_autocast_enabled("cpu")))

    handle = step.pipeline.vae.decoder.register_forward_pre_hook(watch)
    clip = Sampler(step, steps=2).clip("a red ball", row)
    handle.remove()
    assert {*seen} == {(torch.float32, False)}  # the VAE was in float32, and was asked in it
    assert vars(step.pipeline.vae).get("decode") is decode
    assert (clip - half).abs().mean() < 0.05


def test_what_a_call_may_return():
    images = [Image.fromarray(np.full((4, 6, 3), value, np.uint8)) for value in (0, 255)]
    expected = torch.stack([torch.full((3, 4, 6), -1.0), torch.ones(3, 4, 6)])
    array = np.stack([np.asarray(image) / 255 for image in images])
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    for frames in ([images], images, array, array[None], [array], [*array], tensor, tensor[None], [tensor]):
        assert torch.equal(generating.frames({"frames": frames}), expected)
        assert torch.equal(generating.frames({"frames": None, "videos": frames}), expected)
    for wrong in ({}, {"frames": []}, {"frames": torch.zeros(2, 5, 4, 6)}):
        with pytest.raises(ValueError, match="no video"):
            generating.frames(wrong)
    with pytest.raises(ValueError, match="not finite"):
        generating.frames({"frames": tensor * float("nan")})


def test_what_cannot_be_sampled_so_is_refused(wan):
    with pytest.raises(ValueError, match="steps must be at least 1"):
        Sampler(wan, steps=0)
    with pytest.raises(ValueError, match="one example a caption: 1 and 2"):
        Sampler(wan).write("unused", ["a", "b"], [{}])
    svd = step_of("stable-video-diffusion")[0]
    assert Sampler(svd, steps=2).clip("", {"pixels": torch.zeros(5, 3, 32, 48)}).shape == (5, 3, 32, 48)
    with pytest.raises(ValueError, match="StableVideoDiffusionPipeline has no guidance_scale"):
        Sampler(svd, guidance=3.0)


# ------------------------------------------------------------------------------------------------------------- files


def test_files_are_named_by_their_captions_and_listed(wan, tmp_path):
    sampler = Sampler(wan, steps=2, fps=8, seed=5)
    paths = sampler.write(tmp_path / "new" / "step-0", CAPTIONS)
    assert [path.name for path in paths] == ["00-a-red-ball-bounces.mp4", "01-a-blue-cube-rolls-falls.mp4", "02.mp4"]
    listed = read_samples(tmp_path / "new" / "step-0")
    assert listed == [Sample(c, 5 + i, path.name) for i, (c, path) in enumerate(zip(CAPTIONS, paths, strict=True))]
    save_clip(tmp_path / "alone.mp4", sampler.clip(CAPTIONS[1], seed=6), fps=8)
    assert paths[1].read_bytes() == (tmp_path / "alone.mp4").read_bytes()  # whatever was generated before it
    assert sorted(path.name for path in (tmp_path / "new" / "step-0").iterdir()) == [
        *sorted(path.name for path in paths), "samples.json",
    ]  # fmt: skip
    assert sampler.write(None, CAPTIONS[:1]) == []


def test_a_clip_that_fails_ends_no_training(tmp_path, caplog):
    """One row without the image that the call needs, and then weights that are no numbers any more."""
    step, row = step_of("wan2.1-i2v")
    with caplog.at_level(logging.WARNING, "hf_motive"):
        paths = Sampler(step, steps=2).write(tmp_path, ["a red ball", "nothing", "a blue cube"], [row, {}, row])
        assert [path.name for path in paths] == ["00-a-red-ball.mp4", "02-a-blue-cube.mp4"]
        assert [sample.seed for sample in read_samples(tmp_path)] == [0, 2]
        assert "No sample of 'nothing': PipelineError" in caplog.text
        next(step.pipeline.transformer.parameters()).data.fill_(float("nan"))
        assert Sampler(step, steps=2).write(tmp_path / "nan", ["a red ball"], [row]) == []
    assert "not finite" in caplog.text and read_samples(tmp_path / "nan") == []


# -------------------------------------------------------------------------------------------------------- comparison


def written(folder: Path, captions: list[str], first: int, frames: int = 6, **clip) -> Path:
    folder.mkdir(parents=True)
    rows = []
    for i, caption in enumerate(captions):
        rows.append({"caption": caption, "seed": i, "file": f"{i:02d}-clip #{i}.mp4"})
        save_clip(folder / rows[-1]["file"], moving_square(first + i, frames=frames, **clip), fps=8)
    (folder / "samples.json").write_text(json.dumps(rows))
    return folder


class Videos(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_a_comparison_shows_both_sides(tmp_path):
    captions = ["a <square> & goes left", "a square goes right across a ground that takes many words to be described"]
    before = written(tmp_path / "run/samples/step-0", captions, 0)
    after = written(tmp_path / "run/samples/step-9", captions, 4, frames=8)
    found = compare(before, after, tmp_path / "run/samples/compare", root=tmp_path / "run")
    assert found.samples[0] == {
        "caption": captions[0],
        "seed": 0,
        "before": "samples/step-0/00-clip #0.mp4",
        "after": "samples/step-9/00-clip #0.mp4",
        "both": "samples/compare/00-clip #0.mp4",
    }
    assert (found.strip, found.page) == ("samples/compare/strip.png", "samples/compare/index.html")
    both = load_clip(str(tmp_path / "run" / found.samples[1]["both"]))
    assert len(both) == 8 and both.shape[2] % 2 == both.shape[3] % 2 == 0
    for end, half in (("before", both[..., -192:, :256]), ("after", both[..., -192:, -256:])):
        clip = load_clip(str(tmp_path / "run" / found.samples[1][end]))
        clip = torch.cat([clip, clip[-1:].expand(8 - len(clip), -1, -1, -1)])
        assert (half[..., ::4, ::4] - clip).abs().mean() < 0.06, end
    strip = Image.open(tmp_path / "run" / found.strip)
    assert strip.width > 700 and strip.height > 300 and len(strip.getcolors(1 << 20)) > 20

    page = Videos()
    page.feed((tmp_path / "run" / found.page).read_text("utf-8"))
    assert [(found.folder / unquote(source)).is_file() for source in page.sources] == [True, True]
    assert captions[0] in page.text and captions[1] in page.text
    alone = compare(before, after, tmp_path / "alone")
    assert alone.samples[0]["before"] == "../run/samples/step-0/00-clip #0.mp4" and alone.page == "index.html"


def test_clips_of_other_sizes_stand_side_by_side():
    grey = torch.zeros(1, 3, 30, 41)
    both = side_by_side(torch.cat([grey, grey - 1]), -torch.ones(3, 3, 50, 40))
    assert both.shape[0] == 3 and both.shape[2] % 2 == both.shape[3] % 2 == 0
    times = 6  # 50 · 6 = 300 >= 256
    half = both[:, :, 36 : 36 + 30 * times, : 41 * times]
    assert (half[0] == 0).all() and (half[1:] == -1).all()  # the last frame of the shorter stays
    assert (both[:, :, 36 + 30 * times :, : 41 * times] == 1).all()
    assert (both[:, :, :36] < 0).any()  # the labels
    large = side_by_side(torch.zeros(1, 3, 480, 832), torch.zeros(1, 3, 480, 832))
    assert large.shape == (1, 3, 516, 2 * 832 + 12)


def test_what_has_no_counterpart_is_left_out(tmp_path, caplog):
    before, after = written(tmp_path / "a", ["one", "two", "three"], 0), written(tmp_path / "b", ["one", "two"], 3)
    (before / "01-clip #1.mp4").write_bytes(b"cut off")
    rows = json.loads((after / "samples.json").read_text())
    (after / "samples.json").write_text(json.dumps([*rows, {"caption": "four", "seed": 3, "file": "x.mp4"}]))
    with caplog.at_level(logging.WARNING, "hf_motive"):
        found = compare(before, after, tmp_path / "c")
    assert [sample["caption"] for sample in found.samples] == ["one"]
    assert "No comparison of 'two'" in caplog.text and "no sample of 'four' with seed 3" in caplog.text


def test_what_cannot_be_compared_says_why(tmp_path):
    before, other = written(tmp_path / "a", ["one"], 0), written(tmp_path / "b", ["two"], 0)
    with pytest.raises(ValueError, match="no caption and seed in common: sample the same captions"):
        compare(before, other, tmp_path / "c")
    with pytest.raises(ValueError, match="compare into another folder"):
        compare(before, before, before)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no samples.json"):
        compare(tmp_path / "empty", before, tmp_path / "c")
    (other / "samples.json").write_text('[{"caption": "one"}]')
    with pytest.raises(ValueError, match="is not a list of samples"):
        compare(before, other, tmp_path / "c")
    (other / "samples.json").write_text(json.dumps([{"caption": "one", "seed": 0, "file": "gone.mp4"}]))
    with pytest.raises(ValueError, match="sample both again"):
        compare(before, other, tmp_path / "c")
