"""VBench and what it calls, imported from the files that they are published in; the rest of its imports is stubbed."""

from __future__ import annotations

import importlib.util
import sys
import tarfile
import zipfile
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from . import networks

#: name without ".mp4" to (frames (F, H, W, 3) uint8, frames per second): what both readers of videos below give.
VIDEOS: dict[str, tuple[np.ndarray, float]] = {}


def unpack(folder: Path, to: Path) -> None:
    """Unpack wheels and source packages into one folder, and make its modules importable."""
    for archive in sorted(folder.iterdir()):
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(to)
        elif archive.name.endswith(".tar.gz"):
            with tarfile.open(archive) as opened:
                opened.extractall(to, filter="data")
    sys.path.insert(0, str(to))
    # torchvision's operators are compiled for another torch. Its transforms need none, only that these have a name.
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)


_KEPT: list[Any] = []


def import_vbench(*, decode: bool) -> SimpleNamespace:
    """VBench's modules of the six dimensions, by name.

    Args:
        decode: Read mp4 files, with OpenCV as VBench does, and with decord if that was unpacked too. Otherwise videos
            are those in `VIDEOS`.
    """
    real_decord = decode and importlib.util.find_spec("decord") is not None
    stubs = {
        "easydict": {"EasyDict": dict},
        "omegaconf": {"OmegaConf": None},
        "imageio": {"imread": None, "imwrite": None},
        "clip": {"load": None},
        "pyiqa": {},
        "pyiqa.archs": {},
        "pyiqa.archs.musiq_arch": {"MUSIQ": None},
        "utils": {"trunc_normal_": nn.init.trunc_normal_},  # DINO's
    }
    if not real_decord:
        bridge = SimpleNamespace(set_bridge=lambda name: None)
        stubs["decord"] = {"VideoReader": _FileReader if decode else _Reader, "cpu": None, "bridge": bridge}
    for name, members in stubs.items():
        module = ModuleType(name)
        vars(module).update(members)
        sys.modules[name] = module
    names = (
        "subject_consistency", "background_consistency", "motion_smoothness", "dynamic_degree", "aesthetic_quality",
        "imaging_quality",
    )  # fmt: skip
    modules = {name: importlib.import_module(f"vbench.{name}") for name in names}
    if not decode:
        opencv = SimpleNamespace(**{**vars(cv2), "VideoCapture": _Capture})
        modules["dynamic_degree"].cv2 = modules["motion_smoothness"].cv2 = opencv
    return SimpleNamespace(**modules, decoder="decord" if real_decord else "PyAV" if decode else "none")


def dino(file: Path) -> nn.Module:
    """DINO's own vision transformer, from its source file, with the weights of `networks`."""
    code = _module("vision_transformer", file)
    size = networks.DINO
    model = code.VisionTransformer(
        patch_size=size["patch"], embed_dim=size["width"], depth=size["layers"], num_heads=size["heads"],
        mlp_ratio=size["hidden"] / size["width"], qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    model.load_state_dict(networks.dino_weights())
    return model.eval()


def clip(file: Path) -> nn.Module:
    """OpenAI's own CLIP, from its source file, with the weights of `networks` where it sees images."""
    code = _module("openai_clip_model", file)
    size = networks.CLIP
    model = code.CLIP(
        embed_dim=size["features"], image_resolution=224, vision_layers=size["layers"], vision_width=size["width"],
        vision_patch_size=size["patch"], context_length=4, vocab_size=8, transformer_width=64, transformer_heads=1,
        transformer_layers=1,
    )  # fmt: skip
    model.visual.load_state_dict(networks.clip_weights())
    return model.eval().requires_grad_(False)


def _module(name: str, file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Readers of videos -----------------------------------------------------------------------------------------------


class _Batch:
    def __init__(self, frames: np.ndarray):
        self.frames = frames

    def asnumpy(self) -> np.ndarray:
        return self.frames


class _Reader:
    """In place of decord's `VideoReader`: frames of `VIDEOS`."""

    def __init__(self, path: str, num_threads: int = 0):
        self.frames = VIDEOS[Path(path).stem][0]

    def __len__(self) -> int:
        return len(self.frames)

    def get_batch(self, rows: Any) -> _Batch:
        return _Batch(self.frames[list(rows)])


class _FileReader(_Reader):
    """The same, of a file."""

    def __init__(self, path: str, num_threads: int = 0):
        import av

        with av.open(path) as container:
            self.frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


class _Capture:
    """In place of OpenCV's `VideoCapture`: frames of `VIDEOS`, blue first."""

    def __init__(self, path: str):
        frames, self.fps = VIDEOS[Path(path).stem]
        self.frames = iter(frames)

    def get(self, name: int) -> float:
        assert name == cv2.CAP_PROP_FPS
        return self.fps

    def isOpened(self) -> bool:
        return True

    def read(self) -> tuple[bool, np.ndarray | None]:
        frame = next(self.frames, None)
        return (False, None) if frame is None else (True, np.ascontiguousarray(frame[..., ::-1]))

    def release(self) -> None:
        pass
