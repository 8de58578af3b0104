"""The lines of Python that load trained weights again, by nothing but diffusers (and peft where diffusers cannot)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hf_motive.training.adapters import place_of

#: Stands in the code for a pipeline that has neither an id nor a folder.
NO_NAME = "PUT THE BASE MODEL HERE"


def dtypes_of(pipeline: Any) -> dict[str, torch.dtype]:
    """Component -> the precision of its weights, of those that have any."""
    found: dict[str, torch.dtype] = {}
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            every = Counter(weight.dtype for weight in part.parameters() if weight.is_floating_point())
            dtype = getattr(part, "dtype", None)
            if every:  # a part may keep a few of its layers in float32, whatever it is loaded in
                found[name] = (
                    dtype if isinstance(dtype, torch.dtype) and dtype in every else every.most_common(1)[0][0]
                )
    return found


def how_to_load(
    pipeline_here: Any,
    denoisers: Mapping[str, nn.Module],
    kind: str,
    dtypes: Mapping[str, torch.dtype],
    where: str,
    pipeline: str,
) -> str:
    """Lines that end with `pipe`, ready to generate.

    Args:
        pipeline_here: The pipeline whose denoisers were trained.
        denoisers: Those that were, by name.
        kind: "full" or "lora".
        dtypes: Of the pipeline's components before the training.
        where: Folder or Hub id of the weights.
        pipeline: Folder or Hub id of the pipeline that was trained; "" where it has neither.
    """
    pipeline = pipeline or NO_NAME
    default = dtypes.get(next(iter(denoisers)), torch.float32)
    given_whole = denoisers if kind == "full" else {}
    others = {name: dtype for name, dtype in dtypes.items() if dtype != default and name not in given_whole}
    kept = json.dumps(where)
    modular = hasattr(pipeline_here, "load_components")
    classes = ["diffusers.ModularPipeline" if modular else _path(type(pipeline_here))]
    of_all = ", torch_dtype={" + ", ".join(f'"{n}": {d}' for n, d in {"default": default, **others}.items()) + "}"
    options = of_all if others else _option(default)
    before, arguments, after = [], [], []
    for name, part in denoisers.items():
        if kind == "full":
            classes.append(_path(type(part)))
            own = _option(dtypes.get(name, default))
            before.append(f'{name} = {type(part).__name__}.from_pretrained({kept}, subfolder="{name}"{own})')
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
    imports = ["import torch"] if "torch_dtype=" in "".join([*before, *load]) else []
    modules = {
        module: sorted({name for path in classes for m, _, name in [path.rpartition(".")] if m == module})
        for module in sorted({path.rpartition(".")[0] for path in classes})
    }
    imports += [f"from {module} import {', '.join(names)}" for module, names in modules.items()]
    return "\n".join([*imports, "", *before, *load, *after])


def _option(dtype: torch.dtype) -> str:
    return "" if dtype == torch.float32 else f", torch_dtype={dtype}"


def _path(kind: type) -> str:
    """Where a class is imported from: where the library shows it, if it does."""
    import diffusers

    return f"{'diffusers' if getattr(diffusers, kind.__name__, None) is kind else kind.__module__}.{kind.__name__}"
