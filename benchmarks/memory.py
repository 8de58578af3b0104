"""What one clip's feature holds in a device's memory at the true sizes: weights, and what backward needs.

    python benchmarks/memory.py

No weight and no activation exists: denoisers of published configurations run forward in bfloat16 on torch's meta
device, and what autograd saves is counted, each storage once; attention as it is computed without its scores being
stored. With gradient checkpointing the inputs of all blocks are held, and what one block saves. The passing tensors of
a backward come on top. Writes benchmarks/results/memory.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from arithmetic import CASES, Case
from torch import Tensor, nn

from hf_motive.factored import Factored
from hf_motive.gradients import GradientProjector
from hf_motive.projection import Fastfood
from hf_motive.sharding import blocks

ROOT = Path(__file__).parents[1]


class _Attention(torch.autograd.Function):
    """Saves what a fused attention does: its inputs, its output and one number a row of scores."""

    @staticmethod
    def forward(ctx, query, key, value):
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:3], dtype=torch.float32))
        return output


@contextmanager
def fused_attention() -> Iterator[None]:
    real = torch.nn.functional.scaled_dot_product_attention
    torch.nn.functional.scaled_dot_product_attention = lambda query, key, value, *_, **__: _Attention.apply(
        query, key, value
    )
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = real


def saved(case: Case, law: Fastfood | Factored) -> tuple[int, int, int]:
    """Bytes that a forward pass leaves for backward: all, without those of the blocks, and of the largest block.

    Among those without the blocks are the blocks' inputs.
    """
    with torch.device("meta"):
        model, inputs = case.build().eval(), case.inputs()
    exact = set(model._keep_in_fp32_modules or ())  # as `from_pretrained` leaves them
    for name, parameter in model.named_parameters():
        if exact.isdisjoint(name.split(".")):
            parameter.data = parameter.data.bfloat16()
    inputs = {name: value.bfloat16() if isinstance(value, Tensor) else value for name, value in inputs.items()}
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    names, running = blocks(model), 0
    inside: dict[int, dict[int, int]] = {}
    outside: dict[int, int] = {}
    kept = []  # so that no storage's place is given to another

    def note(tensor: Tensor, where: dict[int, int]) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept.append(tensor)
            where[storage._cdata] = storage.nbytes()

    def pack(tensor: Tensor) -> Tensor:
        note(tensor, inside[running] if running else outside)
        return tensor

    def enter(block: nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal running
        running = id(block)
        inside[running] = {}
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                note(value, outside)

    def leave(*_) -> None:
        nonlocal running
        running = 0

    for part in model.modules():
        if type(part).__name__ in names:
            part.register_forward_pre_hook(enter, with_kwargs=True)
            part.register_forward_hook(leave)
    with (
        fused_attention(),
        GradientProjector(dict(model.named_parameters()), law, [model]),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        model(**inputs, return_dict=False)
    everything = dict(outside)
    for own in inside.values():
        everything.update(own)
    largest = max(sum(size for at, size in own.items() if at not in outside) for own in inside.values())
    return sum(everything.values()), sum(outside.values()), largest


def row(case: Case) -> str:
    """A line of the table, in GB."""
    with torch.device("meta"):
        parameters = [parameter.numel() for parameter in case.build().parameters()]
    plain, outside, block = saved(case, Fastfood())
    factored, _, thin_block = saved(case, Factored())
    held = 2 * sum(parameters)
    gigabytes = [
        held,
        plain,
        factored,
        outside + block,
        outside + thin_block,
        # In backward beside them: of Fastfood one parameter's gradient in bfloat16 and its rows, of either its tables.
        2 * max(parameters) + 2 * 4 * 2**22,
        held + outside + block,
    ]
    return f"| {case.name} | {case.clip} | " + " | ".join(f"{size / 1e9:.1f}" for size in gigabytes) + " |"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = []
    for case in CASES:
        rows.append(row(case))
        print(rows[-1], flush=True)
    (ROOT / "benchmarks" / "results" / "memory.md").write_text(TEXT + "\n".join(rows) + "\n", encoding="utf-8")


TEXT = """\
# What one clip's feature holds in memory

Gigabytes (10⁹), counted on torch's meta device from the published configurations in bfloat16, attention fused; nothing
was run on a GPU. *Saved* is what a forward pass leaves for backward, by either path; *with checkpointing* the blocks'
inputs and one block's. The last column is weights and what is saved with checkpointing: what a card must have before
the passing tensors of a backward (a few of the largest activation), the latents, and the allocator's own. Text encoder
and VAE are elsewhere (`--encode --offload`). Counted so in float32, the Wan of 50 M parameters in cost.md saves 206
MiB; its forward was measured to peak at 247. Repeat with `python benchmarks/memory.py`.

| denoiser | clip | weights | saved, Fastfood | saved, factored | with checkpointing, Fastfood | factored \
| gradient and rows of Fastfood | least for a card |
|---|---|---|---|---|---|---|---|---|
"""


if __name__ == "__main__":
    main()
