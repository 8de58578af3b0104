"""The floor: how many floating-point operations one clip's feature takes at the true sizes, and where they are.

    python benchmarks/arithmetic.py

No weight and no activation exists: denoisers of published configurations run on torch's meta device, and torch's own
counter counts matrix products and attention (a multiply and an add are two; elementwise work is not counted, nor are
text encoder and VAE). Attention is counted as it is computed without being stored: its backward recomputes the
scores, 2.5 times the forward. Writes benchmarks/results/arithmetic.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hf_motive.factored import Factored

ROOT = Path(__file__).parents[1]


class Case(NamedTuple):
    """A denoiser of a published configuration, and the tensors of one clip."""

    name: str
    clip: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], dict]


def _wan(layers: int, heads: int, ffn: int) -> Callable[[], nn.Module]:
    from diffusers import WanTransformer3DModel

    return lambda: WanTransformer3DModel(
        num_attention_heads=heads, attention_head_dim=128, num_layers=layers, ffn_dim=ffn, text_dim=4096
    )


def _wan_inputs(frames: int, height: int, width: int) -> Callable[[], dict]:
    return lambda: {
        "hidden_states": torch.empty(1, 16, (frames - 1) // 4 + 1, height // 8, width // 8),
        "timestep": torch.empty(1),
        "encoder_hidden_states": torch.empty(1, 512, 4096),
    }


def _ltx() -> nn.Module:
    from diffusers import LTXVideoTransformer3DModel

    return LTXVideoTransformer3DModel()  # the class's own defaults are those of LTX-Video 2B


def _ltx_inputs(frames: int, height: int, width: int) -> Callable[[], dict]:
    grid = (frames - 1) // 8 + 1, height // 32, width // 32
    return lambda: {
        "hidden_states": torch.empty(1, grid[0] * grid[1] * grid[2], 128),
        "encoder_hidden_states": torch.empty(1, 128, 4096),
        "timestep": torch.empty(1),
        "encoder_attention_mask": torch.empty(1, 128),
        "num_frames": grid[0],
        "height": grid[1],
        "width": grid[2],
    }


def _cogvideox() -> nn.Module:
    from diffusers import CogVideoXTransformer3DModel

    return CogVideoXTransformer3DModel()  # and these those of CogVideoX-2b


def _cogvideox_inputs(frames: int, height: int, width: int) -> Callable[[], dict]:
    return lambda: {
        "hidden_states": torch.empty(1, (frames - 1) // 4 + 1, 16, height // 8, width // 8),
        "encoder_hidden_states": torch.empty(1, 226, 4096),
        "timestep": torch.empty(1),
    }


CASES = (
    Case("Wan 2.1 1.3B", "81×480×832", _wan(30, 12, 8960), _wan_inputs(81, 480, 832)),
    Case("Wan 2.1 1.3B", "49×480×832", _wan(30, 12, 8960), _wan_inputs(49, 480, 832)),
    Case("Wan 2.1 1.3B", "17×480×832", _wan(30, 12, 8960), _wan_inputs(17, 480, 832)),
    Case("Wan 2.1 14B", "81×480×832", _wan(40, 40, 13824), _wan_inputs(81, 480, 832)),
    Case("Wan 2.1 14B", "81×720×1280", _wan(40, 40, 13824), _wan_inputs(81, 720, 1280)),
    Case("LTX-Video 2B", "161×512×704", _ltx, _ltx_inputs(161, 512, 704)),
    Case("CogVideoX 2B", "49×480×720", _cogvideox, _cogvideox_inputs(49, 480, 720)),
)


class Counted(NamedTuple):
    """Floating-point operations of one clip."""

    parameters: int
    attention: float  # forward
    linear: float  # forward, everything that is no attention
    factored: float  # of the linear layers whose weight gradient the factored path does without, forward
    thin: float  # what the factored path computes instead


def count(case: Case, rank: int = 64) -> Counted:
    """Count the forward pass of a case, and what the two projections of its linear layers take."""
    law = Factored(rank=rank)
    with torch.device("meta"):
        model, inputs = case.build().eval(), case.inputs()
    factored = thin = 0.0

    def note(layer: nn.Linear, args: tuple, output: torch.Tensor) -> None:
        nonlocal factored, thin
        tokens, (o, m) = output.numel() // output.shape[-1], layer.weight.shape
        if law.is_factored(layer.weight.shape):
            factored += 2 * tokens * o * m
            thin += 2 * tokens * (o + m + rank) * rank

    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(note)
    attention = 0.0
    real = torch.nn.functional.scaled_dot_product_attention

    def counted(query, key, value, *args, **kwargs):
        nonlocal attention
        batch, heads, length, width = query.shape
        attention += 4 * batch * heads * length * key.shape[-2] * width
        return torch.empty_like(query)

    torch.nn.functional.scaled_dot_product_attention = counted
    try:
        with FlopCounterMode(display=False) as seen, torch.no_grad():
            model(**inputs, return_dict=False)
    finally:
        torch.nn.functional.scaled_dot_product_attention = real
    parameters = sum(p.numel() for p in model.parameters())
    return Counted(parameters, attention, float(seen.get_total_flops()), factored, thin)


def row(case: Case) -> str:
    """A line of the table."""
    found = count(case)
    step = 3.5 * found.attention + 3 * found.linear
    fast = step - found.factored + found.thin
    # A multiply and an add in each of the three products of a Hadamard of 4,096 = 16 · 16 · 16.
    fastfood = step + found.parameters * 2 * (16 + 16 + 16)
    checkpointed = found.attention + found.linear
    return (
        f"| {case.name} | {case.clip} | {found.parameters / 1e9:.2f} B | {step / 1e12:,.0f} "
        f"| {3.5 * found.attention / step:.0%} | {found.factored / step:.0%} | {fastfood / step:.3f} "
        f"| {fast / step:.2f} | {(fast + checkpointed) / (step + checkpointed):.2f} |"
    )


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = []
    for case in CASES:
        rows.append(row(case))
        print(rows[-1], flush=True)
    (ROOT / "benchmarks" / "results" / "arithmetic.md").write_text(TEXT + "\n".join(rows) + "\n", encoding="utf-8")


TEXT = """\
# The floor: what one clip's feature must compute

Floating-point operations of the denoiser for one clip, counted on torch's meta device from the published
configurations; no timing. A step is a plain forward and backward. *Fastfood* adds its Hadamards, *factored* does
without the weight gradients of linear layers and adds its thin products (rank 64); the last column is the same where
the forward is computed twice (gradient checkpointing, in both). Repeat with `python benchmarks/arithmetic.py`.

| denoiser | clip | parameters | a step, 10¹² | of it attention | of it weight gradients | Fastfood ÷ step \
| factored ÷ step | with checkpointing |
|---|---|---|---|---|---|---|---|---|
"""


if __name__ == "__main__":
    main()
