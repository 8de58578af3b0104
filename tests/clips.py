"""Real mp4 files for tests: a textured square that crosses a textured ground."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from hf_motive.video import save_clip


def moving_square(seed: int, *, frames: int = 12, height: int = 48, width: int = 64, speed: float = 2.0) -> Tensor:
    """(F, 3, H, W) in [-1, 1]. Speed in pixels a frame, along a direction that the seed chooses; 0 is static."""
    generator = torch.Generator().manual_seed(seed)
    ground = torch.nn.functional.interpolate(
        torch.rand(1, 3, height // 4, width // 4, generator=generator), size=(height, width), mode="bilinear"
    )[0]
    size = 16
    square = torch.rand(3, size, size, generator=generator)
    direction = 1 if seed % 2 else -1
    clip = []
    for f in range(frames):
        frame = ground.clone()
        x = round((width - size) / 2 + direction * speed * (f - frames / 2))
        x = min(max(x, 0), width - size)
        frame[:, 16 : 16 + size, x : x + size] = square
        clip.append(frame)
    return torch.stack(clip) * 2 - 1


def write_corpus(folder: Path, seeds: range, **clip) -> list[dict]:
    """A folder of mp4 files at 16 frames per second with `metadata.jsonl`; returns its rows."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in seeds:
        name = f"{seed:03d}.mp4"
        save_clip(folder / name, moving_square(seed, **clip), fps=16)
        kind = "right" if seed % 2 else "left"
        rows.append({"file_name": name, "caption": f"a square goes {kind}", "kind": kind})
    write_metadata(folder, rows)
    return rows


def write_metadata(folder: Path, rows: list[dict]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
