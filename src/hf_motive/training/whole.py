"""A whole denoiser as a folder that diffusers loads, in as many files as it takes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

#: A file of weights is no larger than this.
MAX_SHARD = "5GB"
#: Names of the files, as diffusers looks for them.
_PATTERN = "diffusion_pytorch_model{suffix}.safetensors"
_INDEX = "diffusion_pytorch_model.safetensors.index.json"
_OURS = re.compile(r"config\.json|diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


def files_of(folder: Path) -> list[Path]:
    """The files in the folder of a whole model that `save_whole` writes, or wrote: all shards, of any number."""
    return [path for path in sorted(folder.glob("*")) if _OURS.fullmatch(path.name) and path.is_file()]


def save_whole(part: Any, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write a model as its `from_pretrained` reads it: its configuration, and its state or one that is given."""
    from huggingface_hub import save_torch_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    part.save_config(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)  # a folder of the machine
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    state = dict(part.state_dict() if state is None else state)
    save_torch_state_dict(state, folder, filename_pattern=_PATTERN, max_shard_size=MAX_SHARD)


def read_whole(folder: Path) -> dict[str, Tensor]:
    """The state of a model that was written so."""
    from safetensors.torch import load_file

    files = {_PATTERN.format(suffix="")}
    if (folder / _INDEX).is_file():
        files = set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    return {key: value for file in sorted(files) for key, value in load_file(folder / file).items()}
