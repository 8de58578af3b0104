"""What one clip's feature costs, beside a plain forward and backward of the same clip in the same run.

    python benchmarks/cost.py [--device cuda] [--threads 1] [--repeats 7]

Time: medians of interleaved repeats, so that what else the machine does falls on both. Memory: peaks above the model,
of the forward alone, of forward and backward, which keeps every gradient, and of the feature, which should hold one
parameter's gradient and a constant. Writes benchmarks/results/cost.md.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
#: name -> heads of 64, layers, feed-forward width of a Wan transformer; "lab" is the pipeline of examples/lab.
MODELS = {"lab": None, "Wan 5 M": (4, 4, 1024), "Wan 50 M": (10, 7, 2560)}


def build_step(model: str, device: str):
    """A PipelineStep for clips of 17 frames of 64×64, and the pipeline's parameters by name."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

    from hf_motive.gradients import select_parameters
    from hf_motive.pipelines import PipelineStep

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
    step = PipelineStep(pipe, num_frames=17, height=64, width=64)
    return step, select_parameters(step.denoisers, None)


def measure(model: str, device: str, repeats: int) -> None:
    """Print one row of the table."""
    from hf_motive.gradients import GradientProjector, clip_feature
    from hf_motive.projection import Fastfood

    step, parameters = build_step(model, device)
    torch.manual_seed(0)
    latents, noise = step.encode(torch.rand(17, 3, 64, 64) * 2 - 1), step.noise(0)
    weight = torch.rand(step.latent_shape[1:])
    projection = Fastfood(dim=512)

    def loss() -> torch.Tensor:
        return step.loss(latents, "a red ball rolls along", noise=noise, timestep=751, weight=weight).loss

    def plain() -> None:
        loss().backward()
        for parameter in parameters.values():
            parameter.grad = None

    def feature() -> None:
        with GradientProjector(parameters, projection, step.denoisers.values()) as projector:
            clip_feature(projector, [loss])

    def timed(job) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        job()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for job in (plain, feature):
        job()
    rounds = [(timed(plain), timed(feature)) for _ in range(repeats)]
    seconds = [statistics.median(column) for column in zip(*rounds, strict=True)]
    ratio = statistics.median(f / p for p, f in rounds)

    memory = Memory(device)

    def peak(job) -> float:
        memory.begin()
        job()
        return memory.peak_above_begin()

    above = [statistics.median(peak(job) for _ in range(3)) for job in (loss, plain, feature)]
    count = sum(p.numel() for p in parameters.values())
    sizes = [p.numel() * p.element_size() / 2**20 for p in parameters.values()]
    print(
        f"| {model} | {count / 1e6:.2f} M | {seconds[0] * 1e3:.0f} ms | {seconds[1] * 1e3:.0f} ms | {ratio:.2f} "
        f"| {above[0]:.0f} | {above[1]:.0f} | {above[2]:.0f} | {sum(sizes):.0f} | {max(sizes):.1f} |",
        flush=True,
    )


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
    rows = []
    for model in MODELS:  # each in a process of its own, whose memory nothing else has touched
        options = ["--device", arguments.device, "--threads", arguments.threads, "--repeats", arguments.repeats]
        command = [sys.executable, __file__, "--model", model, *map(str, options)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows += [line for line in output.splitlines() if line.startswith("|")]
        print(rows[-1], flush=True)
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{arguments.threads} thread(s) of a CPU"
    report = ROOT / "benchmarks" / "results" / "cost.md"
    report.parent.mkdir(exist_ok=True)
    report.write_text(
        f"# Cost of one clip's feature\n\nOne clip of 17 frames of 64×64, fp32, D′ = 512, torch {torch.__version__}, "
        f"{where}. Medians of {arguments.repeats} interleaved repeats; the ratio is the figure that travels. Memory "
        "is the peak above what was held before, in MiB: of the forward alone (the activations), of forward and "
        "backward, of the feature. Repeat with `python benchmarks/cost.py`.\n\n"
        "| model | parameters | forward + backward | feature | ratio | peak, forward | + backward | peak, feature "
        "| all gradients | largest parameter |\n" + "|---" * 10 + "|\n" + "\n".join(rows) + "\n"
    )


if __name__ == "__main__":
    main()
