"""What is trained of a pipeline, and what diffusers loads of it: whole denoisers, or a LoRA on them."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hf_motive.pipelines import digest
from hf_motive.pipelines.step import find_denoisers
from hf_motive.training import adapters, leftovers
from hf_motive.training.denoisers import Denoisers
from hf_motive.training.loading import dtypes_of, how_to_load
from hf_motive.training.sharding import as_placed
from hf_motive.training.whole import read_whole, save_whole

if TYPE_CHECKING:
    from peft import LoraConfig

logger = logging.getLogger(__name__)

#: What says, beside the weights, what they are.
FACTS = "weights.json"
#: Of a LoRA: what its weights alone do not show, and what they mean depends on.
_SCALES = ("lora_alpha", "alpha_pattern", "use_rslora", "use_dora")


class TrainedWeights:
    """Make one or all denoisers of a pipeline trainable, in full or by a LoRA, and everything else in it fixed.

    The pipeline is changed in place. A denoiser that is trained in full becomes float32; so do the weights of a LoRA,
    while the denoiser under it keeps its precision.

    Args:
        pipe: Any diffusers video pipeline.
        denoiser: The component to train, as in "transformer_2"; None for all denoisers.
        peft_config: Train a LoRA. `target_modules=None` or "all-linear" puts it on the linear layers of attention.

    Attributes:
        module: What an optimizer and a trainer are given.
        names: Of the components that are trained.
        kind: "full" or "lora".
        base: What was there before, as JSON values: `pipeline`, the class; `model`, the digest of all its denoisers,
            as `influence_model` has it; `components`, component -> its own digest.

    Raises:
        PipelineError: The pipeline has no denoiser whose weights a backward pass reaches.
        ValueError: It has no such denoiser; or weights that cannot be trained so.
    """

    def __init__(self, pipe: Any, *, denoiser: str | None = None, peft_config: LoraConfig | None = None):
        found = find_denoisers(pipe)
        if denoiser is not None and denoiser not in found:
            raise ValueError(
                f"{type(pipe).__name__} has no denoiser {denoiser!r}; it has {', '.join(found)}. Choose one by "
                "denoiser=, or train all with denoiser=None"
            )
        chosen = {name: part for name, part in found.items() if denoiser in (None, name)}
        for name, part in chosen.items():
            _check_trainable(name, part, whole=peft_config is None)
        self.pipe = pipe
        self.kind: Literal["full", "lora"] = "full" if peft_config is None else "lora"
        digests = {name: digest.denoiser(part) for name, part in found.items()}
        self.base: dict[str, Any] = {
            "pipeline": type(pipe).__name__,
            "model": digest.model(digests),
            "components": {name: digests[name] for name in chosen},
        }
        self._dtypes, self._sources = dtypes_of(pipe), leftovers.sources(pipe)
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False)
        for name, part in chosen.items():
            if peft_config is None:
                _make_whole_trainable(name, part)
            else:
                _add_lora(name, part, peft_config)
        self.module = Denoisers(chosen)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.module)

    @property
    def count(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.module.parameters() if parameter.requires_grad)

    # ----------------------------------------------------------------------------------------------------------- files

    def save(self, folder: str | Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Write what diffusers loads (see `how_to_load`), and last of all `weights.json`, which says what it is.

        What an earlier training saved there goes, as far as its `weights.json` names it: else its weights would be
        taken for a part of these. All else in the folder stays.

        Args:
            folder: Made if need be; may hold an earlier state of these weights, or of others.
            state_dict: The state of `module`, where it is not in the module itself; None: the module's own.
        """
        folder, states = Path(folder), dict.fromkeys(self.names)
        if state_dict is not None:
            states = {name: _of_component(name, part, state_dict) for name, part in self.module.items()}
        folder.mkdir(parents=True, exist_ok=True)
        # With the facts still there: a process that ends in here leaves the next one what it needs to go on.
        theirs = leftovers.remove(folder, FACTS, self._facts()["files"], self._sources)
        (folder / FACTS).unlink(missing_ok=True)
        for name, part in self.module.items():
            if self.kind == "lora":
                adapters.save_adapter(self.pipe, name, part, folder, states[name])
            else:
                save_whole(part, folder / name, states[name])
        unfinished = folder / f"{FACTS}.part"
        unfinished.write_text(json.dumps(self._facts() | theirs, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(folder / FACTS)

    def check(self, folder: str | Path) -> None:
        """Raise ValueError unless `folder` holds what `save` writes for these very weights; their values do not count.

        FileNotFoundError is raised where there is nothing to load.
        """
        self._read(Path(folder))

    def load(self, folder: str | Path) -> None:
        """Put what `save` wrote back into `module`, to train on.

        Raises:
            ValueError: The folder holds other weights: of another kind, other components, or another base.
            FileNotFoundError: It holds none.
        """
        for name, state in self._read(Path(folder)).items():
            if self.kind == "lora":
                adapters.set_adapter(self.module[name], state)
            else:
                self.module[name].load_state_dict(state)

    def how_to_load(self, where: str, pipeline: str) -> str:
        """The Python lines that load what `save` wrote, for a card or a console; afterwards `pipe` is the pipeline.

        Args:
            where: Folder or Hub id of what was saved.
            pipeline: Folder or Hub id of the pipeline that was trained; "" where it has neither.
        """
        return how_to_load(self.pipe, dict(self.module.items()), self.kind, self._dtypes, where, pipeline)

    def _facts(self) -> dict[str, Any]:
        lora, files = None, list(self.names)
        if self.kind == "lora":
            lora = {name: adapters.described(adapters.config_of(part)) for name, part in self.module.items()}
            files = []
            for name, part in self.module.items():
                place = adapters.place_of(self.pipe, name, part)
                files += [place.file, *([f"{name}/adapter_config.json"] if place.loader == "peft" else [])]
        return {"kind": self.kind, "components": list(self.names), "files": files, "base": self.base, "lora": lora}

    def _read(self, folder: Path) -> dict[str, dict[str, Tensor]]:
        """Component -> its weights in the folder, compared with what is here."""
        if not (folder / FACTS).is_file():
            raise FileNotFoundError(
                f"{folder} has no {FACTS}: it is no folder that a training left, or one that it did not finish. "
                "Go on from an earlier checkpoint"
            )
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        ours = self._facts()
        for key, verb in (("kind", "is"), ("components", "are")):
            if facts[key] != ours[key]:
                raise ValueError(
                    f"{folder} is a checkpoint of another training: its {key} {verb} {facts[key]}, here it is "
                    f"{ours[key]}. Use the peft_config and denoiser that it was trained with, or start without it"
                )
        base = facts["base"]
        if (base["pipeline"], base["components"]) != (self.base["pipeline"], self.base["components"]):
            raise ValueError(
                f"{folder} is a checkpoint of another model: it was trained from {_called(base)}, and this is "
                f"{_called(self.base)}. Load the pipeline that it was trained from, or start without it"
            )
        for name, config in (ours["lora"] or {}).items():
            for key in _SCALES:
                if (theirs := facts["lora"][name].get(key)) != config[key]:
                    raise ValueError(
                        f"{folder} is a checkpoint of another training: its {key} is {theirs}, here it is "
                        f"{config[key]}. Use the peft_config that it was trained with, or start without it"
                    )
        states = {}
        for name, part in self.module.items():
            if self.kind == "lora":
                place = adapters.place_of(self.pipe, name, part)
                state, here = adapters.read_adapter(folder / place.file, place.prefix), adapters.adapter_state(part)
            else:
                state, here = read_whole(folder / name), part.state_dict()
            _check_shapes(folder, name, state, here)
            states[name] = {key: as_placed(value, here[key]) for key, value in state.items()}
        return states


def _check_trainable(name: str, part: nn.Module, *, whole: bool) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(isinstance(module, BaseTunerLayer) for module in part.modules()):
        raise ValueError(
            f"{name} has an adapter already, which diffusers could not load together with the weights to be trained. "
            f"Make it part of the model, by pipe.{name}.fuse_lora() and pipe.{name}.unload_lora(), or take it off by "
            "the latter alone"
        )
    quantised = getattr(part, "quantization_method", None) is not None or any(
        is_traceable_wrapper_subclass(weight) or not weight.is_floating_point() for weight in part.parameters()
    )
    if whole and quantised:
        raise ValueError(
            f"{name} is quantised: weights of so few levels cannot be trained. Load it without quantization_config, "
            "or train a LoRA on it with peft_config=LoraConfig(...)"
        )


def _make_whole_trainable(name: str, part: nn.Module) -> None:
    if any(parameter.dtype != torch.float32 for parameter in part.parameters()):
        logger.info("%s is trained in float32: in %s, small changes of a weight are lost", name, part.dtype)
        part.to(torch.float32)
    part.requires_grad_(True)


def _add_lora(name: str, part: nn.Module, peft_config: LoraConfig) -> None:
    from diffusers.training_utils import cast_training_params

    config = copy.deepcopy(peft_config)
    if config.target_modules in (None, "all-linear"):
        config.target_modules = adapters.lora_targets(part)
    adapters.add_adapter(name, part, config)
    cast_training_params(part, torch.float32)


def _of_component(name: str, part: nn.Module, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A denoiser's own part of the state of `Denoisers`."""
    prefix = f"{name}."
    state = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    missing = [key for key, parameter in part.named_parameters() if parameter.requires_grad and key not in state]
    if missing:
        raise ValueError(
            f"state_dict lacks {len(missing)} weights of {name}, such as {prefix}{missing[0]}: it must be the state "
            "of `module`, gathered from all processes and unwrapped"
        )
    return state


def _check_shapes(folder: Path, name: str, state: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> None:
    shapes, ours = ({key: tuple(value.shape) for key, value in which.items()} for which in (state, here))
    for key in sorted(shapes.keys() | ours.keys()):
        if shapes.get(key) != ours.get(key):
            raise ValueError(
                f"{folder} is a checkpoint of another training: {name} has {key} of shape {shapes.get(key)}, here it "
                f"is {ours.get(key)}. Use the settings that it was trained with, or start without it"
            )


def _called(base: Mapping[str, Any]) -> str:
    parts = ", ".join(f"{name} {value}" for name, value in base["components"].items())
    return f"{base['pipeline']} ({parts})"
