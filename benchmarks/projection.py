"""What the projection costs, and how well it keeps inner products: both as ratios.

    OMP_NUM_THREADS=1 python benchmarks/projection.py

Cost: a Wan transformer of 5 M parameters, one thread; forward, backward and projection against a plain forward and
backward of the same clip, interleaved, in processor time of the fastest repeat (so that other work on the machine
counts as little as it can). Distortion: the variance of ⟨P x, P y⟩ over independent P, divided by that of a dense
Gaussian projection, (‖x‖²‖y‖² + ⟨x, y⟩²) / D′.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from pathlib import Path

import torch
from torch import Tensor

from hf_motive.gradients import GradientProjector, select_parameters
from hf_motive.projection import Fastfood

DIMS = (128, 256, 512, 1024, 2048, 4096)


def wan_5m():
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=64,
        in_channels=16,
        out_channels=16,
        text_dim=64,
        freq_dim=64,
        ffn_dim=512,
        num_layers=6,
    )


def clip(seed: int) -> dict[str, Tensor]:
    """Latents of 5 × 16 × 16, 320 tokens, and a caption of 32 tokens."""
    g = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(1, 16, 5, 16, 16, generator=g),
        "timestep": torch.tensor([751.0]),
        "encoder_hidden_states": torch.randn(1, 32, 64, generator=g),
    }


def loss_of(model, inputs: dict[str, Tensor]) -> Tensor:
    return (model(**inputs, return_dict=False)[0] - inputs["hidden_states"]).square().mean()


def fastest(works, repeats: int) -> list[float]:
    """Milliseconds of processor time of each work's fastest repeat, the works taking turns."""
    best = [math.inf] * len(works)
    for _ in range(repeats):
        for i, work in enumerate(works):
            start = time.process_time()
            work()
            best[i] = min(best[i], 1e3 * (time.process_time() - start))
    return best


def cost(repeats: int) -> list[str]:
    model, inputs = wan_5m(), clip(0)
    parameters = select_parameters({"transformer": model})
    millions = sum(p.numel() for p in parameters.values()) / 1e6

    def plain():
        loss_of(model, inputs).backward()
        model.zero_grad()

    def streamed(dim):
        with GradientProjector(parameters, laws[dim], [model]) as projector:
            projector.project(loss_of(model, inputs))

    laws = {dim: Fastfood(dim) for dim in DIMS}
    loss_of(model, inputs).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in parameters.items()}
    model.zero_grad()
    for dim in DIMS:
        streamed(dim)
    works = [plain, *(lambda d=d: laws[d].project(gradients) for d in DIMS), *(lambda d=d: streamed(d) for d in DIMS)]
    base, *rest = fastest(works, repeats)
    lines = [
        f"Wan transformer of {millions:.2f} M parameters in {len(parameters)} tensors; plain forward and backward: "
        f"{base:.0f} ms.",
        "",
        "| D′ | block | projection, ms | ns a parameter | projection ÷ plain | all three ÷ plain |",
        "|---|---|---|---|---|---|",
    ]
    for dim, alone, whole in zip(DIMS, rest[: len(DIMS)], rest[len(DIMS) :], strict=True):
        lines.append(
            f"| {dim} | {laws[dim].block} | {alone:.1f} | {alone / millions:.1f} | {alone / base:.2f} "
            f"| {whole / base:.2f} |"
        )
    return lines


def variance_ratio(law: Fastfood, x: dict[str, Tensor], y: dict[str, Tensor], repeats: int) -> tuple[float, float]:
    """(variance of ⟨P x, P y⟩ ÷ a dense Gaussian's, mean error in standard errors). Fresh names are a fresh P."""
    exact, xx, yy = (
        sum(torch.dot(a[k].flatten().double(), b[k].flatten().double()) for k in a)
        for a, b in ((x, y), (x, x), (y, y))
    )
    dense = (xx * yy + exact**2) / law.dim
    errors = []
    for repeat in range(repeats):
        px, py = (law.project({f"{repeat}/{name}": v for name, v in vectors.items()}).double() for vectors in (x, y))
        errors.append(torch.dot(px, py) - exact)
    error = torch.stack(errors)
    return (error.square().mean() / dense).item(), (error.mean() / (dense / repeats).sqrt()).item()


def cases(block: int) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    g = torch.Generator().manual_seed(0)
    one, other = (torch.randn(block, generator=g) for _ in range(2))
    spike, two = torch.zeros(block), torch.zeros(block)
    spike[3], two[[3, 17]] = 1, 1
    same = one.repeat(8)
    low_rank = torch.outer(torch.randn(64, generator=g), torch.randn(block // 8, generator=g))
    vectors = {
        "Gaussian, all in one block": (one, one),
        "two independent vectors, one block": (one, other),
        "one position": (spike, spike),
        "two positions": (two, two),
        "constant, 8 blocks": (torch.ones(8 * block), torch.ones(8 * block)),
        "the same vector in 8 blocks": (same, same),
        "rank one, 8 blocks": (low_rank, low_rank),
    }
    return {name: ({"w": x}, {"w": y}) for name, (x, y) in vectors.items()}


def real_gradients() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    model, both = wan_5m(), []
    for seed in (0, 1):
        model.zero_grad()
        loss_of(model, clip(seed)).backward()
        both.append({name: p.grad.clone() for name, p in model.named_parameters()})
    return both[0], both[1]


def distortion(draws: int) -> list[str]:
    x, y = real_gradients()
    dims = {128: draws, 512: draws, 4096: draws // 8}
    wan = draws // 8
    table: dict[str, list[str]] = {}
    worst = 0.0
    for dim, repeats in dims.items():
        law = Fastfood(dim)
        for name, pair in cases(law.block).items():
            ratio, bias = variance_ratio(law, *pair, repeats)
            worst = max(worst, abs(bias))
            table.setdefault(name, []).append(f"{ratio:.2f}")
    ratio, bias = variance_ratio(Fastfood(512), x, y, wan)
    worst = max(worst, abs(bias))
    table["gradients of Wan 5 M, two clips"] = ["", f"{ratio:.2f}", ""]
    lines = ["| D′ | " + " | ".join(map(str, dims)) + " |", "|---|" + "---|" * len(dims)]
    lines += [f"| {name} | " + " | ".join(values) + " |" for name, values in table.items()]
    lines += [
        "",
        f"Standard error of a ratio: about {math.sqrt(2 / draws):.0%} for D′ ≤ 512 ({draws} draws), "
        f"{math.sqrt(2 / wan):.0%} at 4096 and for Wan ({wan} draws). Largest mean error of all entries: {worst:.1f} "
        "standard errors (unbiased: up to about 3 is expected of so many).",
    ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=12, help="timing repeats")
    parser.add_argument("--draws", type=int, default=800, help="independent projections a ratio")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "projection.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["# Projection: cost and distortion", "", f"torch {torch.__version__}, {platform.machine()}, one thread."]
    lines += ["", "## Cost", "", *cost(options.repeats)]
    print("\n".join(lines), flush=True)
    rest = ["", "## Variance of inner products ÷ a dense Gaussian projection's", "", *distortion(options.draws)]
    print("\n".join(rest))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(lines + rest) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
