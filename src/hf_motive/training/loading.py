"""The lines of Python that load trained weights again, by nothing but diffusers (and peft where diffusers cannot)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hf_motive.training.adapters import place_of


def how_to_load(
    pipeline_here: Any, denoisers: Mapping[str, nn.Module], kind: str, dtype: torch.dtype, where: str, pipeline: str
) -> str:
    """Lines that end with `pipe`, ready to generate.

    Args:
        pipeline_here: The pipeline whose denoisers were trained.
        denoisers: Those that were, by name.
        kind: "full" or "lora".
        dtype: Of the pipeline before the training.
        where: Folder or Hub id of the weights.
        pipeline: Folder or Hub id of the pipeline that was trained.
    """
    kept = json.dumps(where)
    modular = hasattr(pipeline_here, "load_components")
    classes = ["diffusers.ModularPipeline" if modular else _path(type(pipeline_here))]
    options = "" if dtype == torch.float32 else f", torch_dtype={dtype}"
    before, arguments, after = [], [], []
    for name, part in denoisers.items():
        if kind == "full":
            classes.append(_path(type(part)))
            before.append(f'{name} = {type(part).__name__}.from_pretrained({kept}, subfolder="{name}"{options})')
            arguments.append(f"{name}={name}")
            continue
        place = place_of(pipeline_here, name, part)
        folder, _, file = place.file.rpartition("/")
        if place.loader == "peft":
            classes.append("peft.PeftModel")
            after.append(f'PeftModel.from_pretrained(pipe.{name}, {kept}, subfolder="{folder}")  # in place')
        elif place.loader == "model":
            after.append(
                f'pipe.{name}.load_lora_adapter({kept}, prefix=None, subfolder="{folder}", weight_name="{file}")'
            )
        else:
            into = "" if place.stem == name else f", load_into_{name}=True"
            after.append(f'pipe.load_lora_weights({kept}, weight_name="{file}"{into})')
    given = "".join(f", {argument}" for argument in arguments)
    if modular:
        load = [f"pipe = ModularPipeline.from_pretrained({json.dumps(pipeline)})"]
        load += [f"pipe.load_components({options.removeprefix(', ')})"]
        load += [f"pipe.update_components({', '.join(arguments)})"] if arguments else []
    else:
        load = [f"pipe = {type(pipeline_here).__name__}.from_pretrained({json.dumps(pipeline)}{given}{options})"]
    imports = ["import torch"] if options else []
    modules = {
        module: sorted({name for path in classes for m, _, name in [path.rpartition(".")] if m == module})
        for module in sorted({path.rpartition(".")[0] for path in classes})
    }
    imports += [f"from {module} import {', '.join(names)}" for module, names in modules.items()]
    return "\n".join([*imports, "", *before, *load, *after])


def _path(kind: type) -> str:
    """Where a class is imported from: where the library shows it, if it does."""
    import diffusers

    return f"{'diffusers' if getattr(diffusers, kind.__name__, None) is kind else kind.__module__}.{kind.__name__}"
