"""The lab: its clips against their own physics, its labels, what the repository carries of it, and its training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hf_motive.lab import BACKGROUNDS, COLORS, MODEL_FRAMES, MOTIONS, SHAPES, ClipSpec, balanced_specs, render_clip
from hf_motive.lab.corpus import main as write
from hf_motive.lab.corpus import read_specs
from hf_motive.lab.dynamics import make_scene
from hf_motive.motion import DISFlow
from hf_motive.video import ClipStandard, load_clip

ASSETS = Path(__file__).parents[1] / "examples" / "lab"
LABELS = ("motion", "shape", "color", "background", "camera")


def spec_of(motion: str, seed: int = 3, camera: str = "still", shape: str | None = None, **more) -> ClipSpec:
    k = [*MOTIONS, "rest"].index(motion)
    return ClipSpec(
        motion,
        shape or SHAPES[k % len(SHAPES)],
        tuple(COLORS)[k % len(COLORS)],
        BACKGROUNDS[k % len(BACKGROUNDS)],
        camera,
        seed=seed,
        **{"num_frames": 9, **more},
    )


# ------------------------------------------------------------------------------------------------------------- clips


@pytest.mark.parametrize("motion", ["bounce", "explode", "swing"])
def test_a_spec_is_a_clip_bit_for_bit(motion):
    first, second = render_clip(spec_of(motion)), render_clip(spec_of(motion))
    for name in ("frames", "flow", "visible", "objects"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert not torch.equal(first.frames, render_clip(spec_of(motion, seed=4)).frames)
    longer = render_clip(spec_of(motion, num_frames=12))
    assert torch.equal(longer.frames[:9], first.frames)


def test_shapes_units_and_ranges():
    clip = render_clip(spec_of("slide", num_frames=5, size=32))
    assert clip.frames.shape == (5, 3, 32, 32) and clip.frames.dtype == torch.float32
    assert clip.frames.min() >= -1 and clip.frames.max() <= 1
    assert clip.flow.shape == (4, 2, 32, 32) and clip.visible.shape == (4, 32, 32)
    assert clip.objects.shape == (5, 32, 32) and clip.objects.dtype == torch.bool
    twice = render_clip(spec_of("slide", num_frames=5, size=64))
    assert float(twice.flow.abs().max()) == pytest.approx(2 * float(clip.flow.abs().max()), rel=1e-3)


def warp_back(frame: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """What frame t + 1 holds at the places to which the pixels of frame t went."""
    _, height, width = frame.shape
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    grid = torch.stack([(x + flow[0]) / width, (y + flow[1]) / height], -1) * 2 - 1
    return F.grid_sample(frame[None], grid[None], mode="bicubic", align_corners=False, padding_mode="border")[0]


def inner(mask: torch.Tensor) -> torch.Tensor:
    """A mask (N, H, W) without its pixels next to anything else, where a pixel's colour is a mixture."""
    return F.max_pool2d((~mask).float()[:, None], 3, 1, 1)[:, 0] == 0


@pytest.mark.parametrize(
    ("motion", "camera"), [*((motion, "still") for motion in MOTIONS), ("explode", "pan"), ("spin", "zoom")]
)
def test_the_flow_is_exact(motion, camera):
    clip = render_clip(spec_of(motion, camera=camera, num_frames=11))
    pure = inner(clip.objects) | inner(~clip.objects)
    stayed = inner(clip.visible) & pure[:-1]
    errors: dict[float, list[torch.Tensor]] = {0.0: [], 0.7: [], 1.0: [], 1.3: []}
    for t in range(3, 10):
        arrives = warp_back(pure[t + 1].float()[None], clip.flow[t])[0] > 0.99
        moving = stayed[t] & arrives & (clip.flow[t].norm(dim=0) > 0.5)
        for scale, found in errors.items():
            found.append((warp_back(clip.frames[t + 1], scale * clip.flow[t]) - clip.frames[t]).abs().mean(0)[moving])
    mean = {scale: torch.cat(found).mean().item() for scale, found in errors.items()}
    assert sum(map(len, errors[1.0])) > 100
    # Of the 2 between black and white; what is left is the interpolation of painted edges.
    assert mean[1.0] < 0.05
    assert mean[1.0] < min(mean[0.7], mean[1.3]) and mean[1.0] < 0.7 * mean[0.0]


def test_a_still_background_does_not_move_and_a_panned_one_moves_as_one():
    still = render_clip(spec_of("bounce"))
    assert still.flow.norm(dim=1)[~still.objects[:-1]].max() == 0
    panned = render_clip(spec_of("rest", camera="pan"))
    flow = panned.flow.permute(0, 2, 3, 1).reshape(-1, 2)
    assert (flow - flow[0]).abs().max() < 1e-4 and flow[0].norm() > 0.5
    rest = render_clip(spec_of("rest"))
    assert rest.flow.abs().max() == 0 and torch.equal(rest.frames[0], rest.frames[-1])


@pytest.mark.parametrize("shape", SHAPES)
def test_rolling_does_not_slip(shape):
    (body,) = make_scene(spec_of("roll", shape=shape, num_frames=17)).bodies
    angle = torch.atan2(torch.tensor(body.matrix[:, 1, 0]), torch.tensor(body.matrix[:, 0, 0]))
    turned = (torch.diff(angle) + torch.pi) % (2 * torch.pi) - torch.pi
    way = torch.diff(torch.tensor(body.centre[:, 0]))
    height = body.shape.support(angle.numpy())
    # The centre's way is the turn times its height above the ground, within the change of height in a frame.
    assert ((way / turned) >= height.min() - 1e-6).all() and ((way / turned) <= body.shape.reach + 1e-6).all()
    ground = body.centre[:, 1] + height
    assert ground == pytest.approx(ground[0], abs=1e-6)


def test_falling_accelerates_evenly_and_a_bounce_turns_back():
    fall = make_scene(spec_of("free_fall", num_frames=17)).bodies[0].centre
    second = fall[2:, 1] - 2 * fall[1:-1, 1] + fall[:-2, 1]
    assert second == pytest.approx(second[0], rel=1e-3) and second[0] > 0.1
    assert fall[:, 0] == pytest.approx(fall[0, 0])
    speed = torch.diff(torch.tensor(make_scene(spec_of("bounce", num_frames=17)).bodies[0].centre[:, 1]))
    assert speed.max() > 2 and speed.min() < -2


@pytest.mark.parametrize("motion", MOTIONS)
def test_motion_is_within_reach_of_optical_flow(motion):
    """The object goes at most half its radius between two frames of the model's length."""
    for seed in range(4):
        for body in make_scene(spec_of(motion, seed=seed, num_frames=17)).bodies:
            if body.shape.name != "string":
                step = torch.tensor(body.centre).diff(dim=0).norm(dim=1)
                assert step.max() < 0.5 * body.shape.radius


# ------------------------------------------------------------------------------------------------------------- labels


def test_labels_are_balanced_and_independent():
    specs = balanced_specs(600, 5)
    moving = [spec for spec in specs if spec.motion != "rest"]
    assert len(specs) == 600 and len(specs) - len(moving) == 30
    assert set(Counter(spec.motion for spec in moving).values()) == {57}
    assert 0.1 < sum(spec.camera != "still" for spec in moving) / len(moving) < 0.2
    for motion in MOTIONS:
        for label in ("shape", "color", "background"):
            counts = Counter(getattr(spec, label) for spec in moving if spec.motion == motion)
            assert max(counts.values()) - min(counts.values()) <= 1
    for a, b in combinations(LABELS, 2):
        # Mutual information: about (rows - 1)(columns - 1) / 2n nats by chance.
        pairs = Counter((getattr(s, a), getattr(s, b)) for s in moving)
        left, right = Counter(getattr(s, a) for s in moving), Counter(getattr(s, b) for s in moving)
        n = len(moving)
        information = sum(
            k / n * torch.log(torch.tensor(k * n / left[x] / right[y])).item() for (x, y), k in pairs.items()
        )
        assert information < 2.5 * (len(left) - 1) * (len(right) - 1) / (2 * n), (a, b)


def test_captions_are_plain_and_tell_the_motions_apart():
    spec = ClipSpec("bounce", "ball", "red", "striped", seed=1)
    assert spec.caption == "a red ball bounces up and down in front of a striped background"
    assert ClipSpec("rest", "box", "orange", "wavy", "zoom").caption.startswith("an orange box stays still")
    assert len({spec_of(motion, shape="ball").caption.split("ball")[1] for motion in MOTIONS}) == 10


def test_a_wrong_label_is_named():
    with pytest.raises(ValueError, match=r"motion must be one of compress, .* got 'jump'"):
        ClipSpec("jump", "ball", "red", "striped")
    with pytest.raises(ValueError, match=r"num_frames >= 1 and size >= 16, got num_frames=0, size=64"):
        ClipSpec("roll", "ball", "red", "striped", num_frames=0)
    with pytest.raises(ValueError, match=r"in \[0, 1\]; got 10, 2, 0.15"):
        balanced_specs(10, 0, static=2)


# ------------------------------------------------------------------------------------------------------------- corpus


def test_a_written_corpus_reads_back(tmp_path, capsys):
    write([str(tmp_path / "corpus"), "--clips", "3", "--seed", "8", "--frames", "5"])
    assert "3/3 clips" in capsys.readouterr().out
    clips = read_specs(tmp_path / "corpus")
    assert [spec for _, spec in clips] == balanced_specs(3, 8, num_frames=5)
    for path, spec in clips:
        frames = load_clip(path)
        assert (frames - render_clip(spec).frames).abs().mean() < 0.06  # h264 with halved colour
    row = json.loads((tmp_path / "corpus" / "metadata.jsonl").read_text().splitlines()[0])
    assert row["caption"] == clips[0][1].caption and {"file_name", *LABELS, "seed"} <= set(row)


@pytest.fixture(scope="module")
def carried() -> dict[str, list[tuple[Path, ClipSpec]]]:
    return {name: read_specs(ASSETS / name) for name in ("corpus", "queries")}


def test_the_carried_clips_are_those_of_their_specs(carried):
    for clips in carried.values():
        for path, spec in (clips[0], clips[-1]):
            assert (load_clip(path) - render_clip(spec).frames).abs().mean() < 0.06


def test_the_carried_clips_cover_what_they_should(carried):
    corpus, queries = ([spec for _, spec in carried[name]] for name in ("corpus", "queries"))
    assert len(corpus) == 300 and sum(spec.motion == "rest" for spec in corpus) == 15
    assert {motion: 4 for motion in MOTIONS} == Counter(spec.motion for spec in queries)
    assert {spec.camera for spec in queries} == {"still"}
    assert not {spec.seed for spec in corpus} & {spec.seed for spec in queries}
    standard = ClipStandard(MODEL_FRAMES, 64, 64, 16.0)
    for path, _ in carried["queries"]:
        assert load_clip(path, standard).shape == (17, 3, 64, 64)


def test_the_carried_files_are_small():
    size = sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file())
    assert size < 20e6
    assert not [path for path in ASSETS.rglob("*") if path.suffix in {".bin", ".pt", ".pkl", ".ckpt"}]


# ----------------------------------------------------------------------------------------------------------- pipeline


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(ASSETS / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_whole_clips_pass_the_vae_as_they_pass_it_in_pieces(pipeline):
    from hf_motive.lab.autoencoder import decode_whole, encode_whole

    pixels = render_clip(spec_of("roll")).frames.transpose(0, 1)[None, :, :, :32, :32]
    with torch.no_grad():
        posterior = pipeline.vae.encode(pixels).latent_dist
        mean, log_variance = encode_whole(pipeline.vae, pixels)
        assert torch.allclose(mean, posterior.mean, atol=1e-4) and torch.allclose(
            log_variance, posterior.logvar, atol=1e-3
        )
        assert torch.allclose(
            decode_whole(pipeline.vae, mean).clamp(-1, 1), pipeline.vae.decode(mean).sample, atol=1e-4
        )


def test_folded_padding_is_the_pipelines_own_padding(pipeline):
    from hf_motive.lab.pipeline import TextPadding
    from hf_motive.lab.train import _embed, _padding_bias

    caption, model = "a red ball rolls along in front of a dotted background", pipeline.transformer
    latents, timestep = torch.randn(1, 8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([700.0])
    with torch.no_grad():
        text, _ = pipeline.encode_prompt(caption, do_classifier_free_guidance=False, max_sequence_length=512)
        expected = model(latents, timestep, text, return_dict=False)[0]
        short, lengths = _embed(pipeline, [caption])
        processor, usual = TextPadding(), dict(model.attn_processors)
        processor.bias = _padding_bias(lengths, 1.0)
        model.set_attn_processor(processor)
        folded = model(latents, timestep, short, return_dict=False)[0]
        model.set_attn_processor(usual)
    assert torch.allclose(folded, expected, atol=1e-4)


def test_normalised_latents_have_unit_spread(pipeline, carried):
    config = pipeline.vae.config
    latents = []
    for path, _ in carried["queries"][::8]:
        pixels = load_clip(path, ClipStandard(MODEL_FRAMES, 64, 64)).transpose(0, 1)[None]
        with torch.no_grad():
            latents.append(pipeline.vae.encode(pixels).latent_dist.mode())
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
    normalised = (torch.cat(latents) - mean) / std
    assert 0.8 < normalised.std() < 1.2 and normalised.mean().abs() < 0.3


def test_generated_clips_move_as_their_captions_say(pipeline):
    from hf_motive.lab.evaluate import generate

    specs = [spec_of(motion, shape="ball", num_frames=MODEL_FRAMES) for motion in ("roll", "free_fall", "rest")]
    rolling, falling, resting = (
        DISFlow()(clip).flow for clip in generate(pipeline, specs, steps=10, guidance=3.0, seed=1)
    )
    moved = [flow.norm(dim=1).mean() for flow in (rolling, falling, resting)]
    assert moved[0] > 2 * moved[2] and moved[1] > 2 * moved[2]
    assert rolling[:, 0].abs().mean() > rolling[:, 1].abs().mean()
    assert falling[:, 1].mean() > 2 * falling[:, 0].mean().abs()


# ----------------------------------------------------------------------------------------------------------- training

SMALL = [
    "--clips",
    "6",
    "--vae-clips",
    "6",
    "--vae-steps",
    "2",
    "--decoder-steps",
    "1",
    "--vae-batch",
    "1",
    "--batch",
    "2",
    "--workers",
    "1",
]


def weights(out: Path, stage: str) -> dict[str, torch.Tensor]:
    return torch.load(out / "work" / f"{stage}.pt", weights_only=True)["average"]


def test_training_resumes_after_a_kill_where_it_was(tmp_path):
    from hf_motive.lab.train import main as train

    through, killed = tmp_path / "through", tmp_path / "killed"
    train(["--out", str(through), "--steps", "4", *SMALL, "--threads", "1"])

    command = [sys.executable, "-m", "hf_motive.lab.train", "--out", str(killed), "--steps", "100000", *SMALL]
    process = subprocess.Popen(
        [*command, "--threads", "1", "--save-minutes", "0"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 240
        while not (killed / "work" / "transformer.pt").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = torch.load(killed / "work" / "transformer.pt", weights_only=True)["step"]
    assert done >= 1
    steps = str(max(done, 4))
    train(["--out", str(through), "--steps", steps, *SMALL, "--threads", "1"])
    train(["--out", str(killed), "--steps", steps, *SMALL, "--threads", "1"])
    for stage in ("vae", "transformer", "decoder"):
        ours, theirs = weights(killed, stage), weights(through, stage)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(killed / "pipeline")
    assert pipe.vae.config.latents_std != [1.0] * 8


def test_training_says_what_is_missing(tmp_path):
    from hf_motive.lab.train import main as train

    with pytest.raises(SystemExit, match="run the stage `clips` first"):
        train(["--out", str(tmp_path), "--stages", "vae", *SMALL])
