"""What one clip's feature costs, beside a plain forward and backward of the same clip in the same run.

    python benchmarks/cost.py [--device cuda] [--threads 1] [--repeats 7]

Time: medians of interleaved repeats, so that what else the machine does falls on all; and where it goes, from the file
to the index. Memory: peaks above the model, of the forward alone, of forward and backward, which keeps every gradient,
and of the feature, which should hold one parameter's gradient and a constant. Writes benchmarks/results/cost.md.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
PATHS = ("fastfood", "factored")
#: name -> heads of 64, layers, feed-forward width of a Wan transformer; "lab" is the pipeline of examples/lab.
MODELS = {"lab": None, "Wan 5 M": (4, 4, 1024), "Wan 50 M": (10, 7, 2560)}


def build(model: str, device: str):
    """A MotiveAttributor for clips of 17 frames of 64×64."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

    from hf_motive import MotiveAttributor

    pipe = WanPipeline.from_pretrained(ROOT / "examples" / "lab" / "pipeline")
    if MODELS[model] is not None:
        heads, layers, ffn = MODELS[model]
        torch.manual_seed(0)
        pipe = WanPipeline(
            tokenizer=pipe.tokenizer,
            text_encoder=pipe.text_encoder,
            vae=AutoencoderKLWan(
                base_dim=8,
                z_dim=16,
                dim_mult=[1, 2, 4],
                num_res_blocks=1,
                temperal_downsample=[True, True],
                scale_factor_spatial=4,
            ).eval(),
            scheduler=UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
            ),
            transformer=WanTransformer3DModel(
                num_attention_heads=heads,
                attention_head_dim=64,
                text_dim=pipe.text_encoder.config.d_model,
                ffn_dim=ffn,
                num_layers=layers,
            ).eval(),
        )
    pipe.to(device)
    return MotiveAttributor(pipe, num_frames=17, height=64, width=64, fps=None)


def measure(model: str, device: str, repeats: int) -> None:
    """Print one row of each table."""
    from hf_motive.factored import Factored
    from hf_motive.gradients import GradientProjector, clip_feature
    from hf_motive.index import GradientIndex
    from hf_motive.video import load_clip

    attributor = build(model, device)
    step, parameters = attributor.step, attributor.parameters
    file, caption = (
        sorted((ROOT / "examples" / "lab" / "queries" / "clips").glob("*.mp4"))[0],
        "a red ball rolls along",
    )
    pixels = load_clip(file, attributor.config.standard)
    row = {"pixels": pixels}
    latents, noise = step.encode(pixels), step.noise(0)
    weight, _ = attributor.motion_weight(pixels)
    answers = step.answers(caption, row)

    def forward() -> torch.Tensor:
        settings = {"noise": noise, "timestep": 751, "weight": weight, "example": row, "answers": answers}
        return step.loss(latents, caption, **settings).loss

    def plain() -> None:
        forward().backward()
        for parameter in parameters.values():
            parameter.grad = None

    def feature(projection=attributor.projection) -> torch.Tensor:
        with GradientProjector(parameters, projection, step.denoisers.values()) as projector:
            return clip_feature(projector, [forward]).vector

    denoiser = step.denoisers["transformer"]
    asked: list[dict] = []
    hook = denoiser.register_forward_pre_hook(lambda _, args, kwargs: asked.append(kwargs), with_kwargs=True)
    forward()
    hook.remove()

    def together(count: int) -> None:
        """Forward and backward of the denoiser alone, for several clips at once."""
        inputs = {
            name: value.detach().repeat(count, *[1] * (value.ndim - 1)) if torch.is_tensor(value) else value
            for name, value in asked[0].items()
        }
        denoiser(**inputs)[0].square().mean().backward()
        for parameter in parameters.values():
            parameter.grad = None

    vector, factored = feature(), Factored(dim=512)
    folder = tempfile.TemporaryDirectory()
    index = GradientIndex.create_or_open(Path(folder.name) / "index", settings={"features": {}}, dim=512)
    names = itertools.count()
    jobs: dict[str, Callable[[], object]] = {
        "plain": plain,
        "fastfood": feature,
        "factored": lambda: feature(factored),
        "forward": forward,
        "one": lambda: together(1),
        "eight": lambda: together(8),
        "decode": lambda: load_clip(file, attributor.config.standard),
        "motion": lambda: attributor.motion_weight(pixels),
        "VAE": lambda: step.encode(pixels),
        "text": lambda: step.answers(caption, row),
        "write": lambda: index.append(f"clip {next(names)}", vector),
    }

    def timed(job: Callable[[], object]) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        job()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for job in jobs.values():
        job()
    rounds = [{name: timed(job) for name, job in jobs.items()} for _ in range(repeats)]
    index.close()
    folder.cleanup()

    def ratio(*plus: str, less: str | None = None) -> float:
        """Of the sum of some jobs, less another, to the plain step: the median over the rounds."""
        return statistics.median(
            (sum(one[name] for name in plus) - (one[less] if less else 0.0)) / one["plain"] for one in rounds
        )

    memory = Memory(device)

    def peak(job: Callable[[], object]) -> float:
        memory.begin()
        job()
        return memory.peak_above_begin()

    above = [statistics.median(peak(jobs[name]) for _ in range(3)) for name in ("forward", "plain", *PATHS)]
    count = sum(p.numel() for p in parameters.values())
    sizes = [p.numel() * p.element_size() / 2**20 for p in parameters.values()]
    seconds = statistics.median(one["plain"] for one in rounds)
    batch = statistics.median(one["eight"] / 8 / one["one"] for one in rounds)
    print(
        f"| {model} | {count / 1e6:.2f} M | {seconds * 1e3:.0f} ms "
        f"| {ratio('fastfood'):.2f} | {ratio('factored'):.2f} | {batch:.2f} "
        f"| {' | '.join(f'{value:.0f}' for value in above)} | {sum(sizes):.0f} | {max(sizes):.1f} |"
    )
    parts = [ratio(name) for name in ("decode", "motion", "VAE", "text", "forward")]
    parts += [ratio("plain", less="forward"), *(ratio(name, less="plain") for name in PATHS)]
    print(f"| {model} | {' | '.join(f'{value:.2f}' for value in parts)} | {ratio('write'):.4f} |", flush=True)


class Memory:
    """Peak memory from `begin` on, in MiB: the allocator's on a GPU, the process's resident set on a CPU (Linux)."""

    def __init__(self, device: str):
        self.device = device

    def begin(self) -> None:
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.held = torch.cuda.memory_allocated() / 2**20
        else:
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier jobs have freed goes back, and counts again
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident now
            self.held = self._resident("VmRSS")

    def peak_above_begin(self) -> float:
        now = torch.cuda.max_memory_allocated() / 2**20 if self.device == "cuda" else self._resident("VmHWM")
        return max(0.0, now - self.held)

    @staticmethod
    def _resident(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--model", choices=MODELS, help="only this one, printed and not written")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.model:
        measure(arguments.model, arguments.device, arguments.repeats)
        return
    rows: list[list[str]] = []
    for model in MODELS:  # each in a process of its own, whose memory nothing else has touched
        options = ["--device", arguments.device, "--threads", arguments.threads, "--repeats", arguments.repeats]
        command = [sys.executable, __file__, "--model", model, *map(str, options)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows.append([line for line in output.splitlines() if line.startswith("|")])
        print(*rows[-1], sep="\n", flush=True)
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{arguments.threads} thread(s) of a CPU"
    report = ROOT / "benchmarks" / "results" / "cost.md"
    report.parent.mkdir(exist_ok=True)
    cost, parts = ("\n".join(lines) for lines in zip(*rows, strict=True))
    report.write_text(
        TEXT.format(version=torch.__version__, where=where, repeats=arguments.repeats, cost=cost, parts=parts),
        encoding="utf-8",
    )


TEXT = """\
# Cost of one clip's feature

One clip of 17 frames of 64×64, fp32, D′ = 512, torch {version}, {where}. Medians of {repeats} interleaved repeats; the
ratios, to a plain forward and backward of the same clip in the same round, are the figures that travel. *Eight at
once* is what a batch could save: a clip's share of the denoiser's forward and backward for eight, to that for one.
Memory is the peak above what was held before, in MiB: of the forward alone (the activations), of forward and backward,
of the feature by either projection. Repeat with `python benchmarks/cost.py`.

| model | parameters | forward + backward | Fastfood ÷ that | factored | eight at once | peak, forward | + backward \
| Fastfood | factored | all gradients | largest parameter |
|---|---|---|---|---|---|---|---|---|---|---|---|
{cost}

## Where the time goes

Shares of a plain forward and backward. Decoding, motion, VAE and text are computed once a clip and can be kept
(`MotiveAttributor.encode`); each projection is what its feature takes beyond the plain step, so that below zero it
saves more than it costs.

| model | decode | motion | VAE encode | text encode | forward | backward | Fastfood | factored | write |
|---|---|---|---|---|---|---|---|---|---|
{parts}
"""


if __name__ == "__main__":
    main()
