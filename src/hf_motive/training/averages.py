"""An exponential moving average of what is trained, to sample, evaluate and save in place of the last step."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from ..processes import processes
from ..sharding import part_again

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel

logger = logging.getLogger(__name__)

#: What is kept beside a checkpoint's weights.
FILE = "ema.safetensors"

Parameters = nn.Module | Callable[[], Iterable[tuple[str, nn.Parameter]]]


class Averaging(TrainerCallback):
    """Running average of the trained parameters: average ← d · average + (1 − d) · value after each optimizer step.

    d starts at 0 and grows as (1 + n) / (10 + n) with the number n of updates, or as `warmup` says, up to `decay`.
    Averages are float32 whatever the parameters are, since in half precision (1 − d) of a difference is lost.

    TRL's `BEMACallback` does not serve: it builds `type(model)(model.config)`, which no diffusers model takes, pairs
    all parameters of that model with the trainable ones, which fails for a LoRA, saves nothing to resume from, and its
    averages are not what the trainer evaluates.

    Args:
        parameters: The module whose trainable parameters are averaged, or a function that names them. It is asked
            anew each time, because sharding replaces them.
        decay: The largest d, in [0, 1).
        min_decay: The smallest d after the first update, in [0, decay].
        update_after_step: Optimizer steps before which the average is the parameters themselves.
        warmup: Let d grow as 1 − (1 + n / inv_gamma) ** −power.
        inv_gamma, power: Of `warmup`, both above 0.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        parameters: Parameters,
        *,
        decay: float = 0.9999,
        min_decay: float = 0.0,
        update_after_step: int = 0,
        warmup: bool = False,
        inv_gamma: float = 1.0,
        power: float = 2 / 3,
    ):
        if not 0 <= min_decay <= decay < 1:
            raise ValueError(f"0 <= min_decay <= decay < 1 does not hold: min_decay={min_decay}, decay={decay}")
        if update_after_step < 0 or inv_gamma <= 0 or power <= 0:
            raise ValueError(
                "update_after_step must be at least 0, inv_gamma and power above 0, "
                f"got {update_after_step}, {inv_gamma}, {power}"
            )
        self._parameters = parameters
        self._settings: dict[str, Any] = {
            "decay": float(decay),
            "min_decay": float(min_decay),
            "update_after_step": update_after_step,
            "use_ema_warmup": warmup,
            "inv_gamma": inv_gamma,
            "power": power,
        }
        self._model: EMAModel | None = None
        self._names: list[str] = []
        self._swapped = False

    # ------------------------------------------------------------------------------------------------------- training

    def on_train_begin(self, args, state, control, **kwargs):
        self._started()

    def on_step_end(self, args, state, control, **kwargs):
        self.update()

    def update(self) -> None:
        """Take in the parameters as they are: once after each optimizer step.

        Raises:
            RuntimeError: The averages are swapped in (`applied`), so the parameters are the averages themselves.
        """
        if self._swapped:
            raise RuntimeError("the parameters are the averages inside applied(): leave it before the next update")
        model, parameters = self._started(), self._local()
        self._follow(model, parameters)
        model.step(parameters.values())

    @property
    def updates(self) -> int:
        """How many optimizer steps are in the averages."""
        return 0 if self._model is None else self._model.optimization_step

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the parameters are their averages; afterwards, and after an error, bit for bit what they were.

        Nested in itself it changes nothing. What trains must not step within.
        """
        if self._swapped or self._model is None:
            yield
            return
        model, parameters = self._model, self._local()
        self._follow(model, parameters)
        before = [parameter.detach().clone() for parameter in parameters.values()]
        self._swapped = True
        try:
            model.copy_to(parameters.values())
            yield
        finally:
            self._scatter()
            with torch.no_grad():
                for parameter, value in zip(parameters.values(), before, strict=True):
                    parameter.copy_(value)
            self._swapped = False

    # --------------------------------------------------------------------------------------------------------- resume

    def state_dict(self) -> dict[str, Tensor]:
        """Parameter's name -> average, float32; of a sharded parameter this process's part. Not copies."""
        model = self._started()
        return dict(zip(self._names, model.shadow_params, strict=True))

    def load_state_dict(self, averages: Mapping[str, Tensor], updates: int) -> None:
        """Go on from averages of an earlier run.

        Args:
            averages: As `state_dict` gave them.
            updates: As `updates` was.

        Raises:
            ValueError: They are of other parameters.
        """
        self._check(averages, "the averages")
        model = self._started()
        for name, shadow in zip(self._names, model.shadow_params, strict=True):
            shadow.copy_(averages[name])
        model.optimization_step = updates

    def save(self, folder: str | Path) -> Path | None:
        """Write `ema.safetensors` into a folder that exists; only on the main process, or, where parameters are
        sharded, one file on each.

        Returns:
            The file; None on a process that has none to write.
        """
        from safetensors.torch import save_file

        path = Path(folder) / self._file()
        if not self._sharded() and not processes().is_main_process:
            return None
        tensors = {name: value.contiguous() for name, value in self.state_dict().items()}
        partial = path.with_name(f".{path.name}.partial")
        try:
            save_file(tensors, partial, {"updates": str(self.updates), "settings": json.dumps(self._settings)})
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    def load(self, folder: str | Path) -> None:
        """Go on from what `save` wrote.

        Raises:
            FileNotFoundError: The folder has no averages, or of another number of processes.
            ValueError: They are of other parameters.
        """
        from safetensors import safe_open
        from safetensors.torch import load_file

        path = Path(folder) / self._file()
        if not path.is_file():
            others = sorted(other.name for other in Path(folder).glob("ema*.safetensors"))
            raise FileNotFoundError(
                f"{folder} has no {path.name}"
                + (
                    f", but {', '.join(others)}: its averages were sharded otherwise. Resume with as many "
                    "processes as it was saved with, or without averaging."
                    if others
                    else ": it was saved without averaging. Resume without, or from a checkpoint that has averages."
                )
            )
        averages = load_file(path)
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
        self._check(averages, str(path))
        before = json.loads(facts["settings"])
        changed = [
            f"{name} {before[name]} -> {now}" for name, now in self._settings.items() if before.get(name) != now
        ]
        if before and changed:
            logger.warning("The averages of %s go on with other settings: %s.", path, ", ".join(changed))
        self.load_state_dict(averages, int(facts["updates"]))

    def _check(self, averages: Mapping[str, Tensor], what: str) -> None:
        """Averages of an adapter are not those of the whole model, and neither are those of another one."""
        here = {name: tuple(parameter.shape) for name, parameter in self._local().items()}
        there = {name: tuple(value.shape) for name, value in averages.items()}
        if here == there:
            return
        differ = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
        raise ValueError(
            f"{what} and what is trained differ in {len(differ)} parameters, such as {differ[0]}: "
            f"{there.get(differ[0], 'none')} there, {here.get(differ[0], 'none')} here. Resume with the model and "
            "peft_config that they were made with, or without averaging."
        )

    # ----------------------------------------------------------------------------------------------------- parameters

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        self._scatter()
        named = self._parameters.named_parameters() if isinstance(self._parameters, nn.Module) else self._parameters()
        return ((name, parameter) for name, parameter in named if parameter.requires_grad)

    def _local(self) -> dict[str, nn.Parameter]:
        """What of each parameter lies on this process, sharing its memory."""
        local: dict[str, nn.Parameter] = {}
        for name, parameter in self._named():
            if (hasattr(parameter, "ds_id") and parameter.numel() == 0) or hasattr(parameter, "_fsdp_flattened"):
                raise ValueError(
                    "averaging cannot follow parameters that DeepSpeed's ZeRO stage 3 or the first version of FSDP "
                    "have taken apart: choose ZeRO stage 2, fsdp_version: 2, or no averaging."
                )
            if isinstance(parameter, DTensor):  # still a parameter: what requires no gradient, EMAModel only copies
                local[name] = nn.Parameter(parameter.to_local().detach())
            else:
                local[name] = parameter
        if not local:
            raise ValueError("averaging found no parameter that requires_grad: make trainable what is trained first.")
        return local

    def _scatter(self) -> None:
        """FSDP leaves its outermost module gathered after a forward pass, and would use it once more as it is."""
        if isinstance(self._parameters, nn.Module):
            part_again(self._parameters)

    def _started(self) -> EMAModel:
        """At the first step, and not at construction: by then the parameters are sharded and on their device."""
        if self._model is None:
            from diffusers.training_utils import EMAModel

            parameters = self._local()
            self._names = list(parameters)
            self._model = EMAModel(parameters.values(), foreach=True, **self._settings)
            self._model.to(dtype=torch.float32)
        return self._model

    @staticmethod
    def _follow(model: EMAModel, parameters: Mapping[str, nn.Parameter]) -> None:
        """Averages live where their parameters do, which may have moved since."""
        model.shadow_params = [
            shadow.to(parameter.device)
            for shadow, parameter in zip(model.shadow_params, parameters.values(), strict=True)
        ]

    def _sharded(self) -> bool:
        return any(isinstance(parameter, DTensor) for _, parameter in self._named())

    def _file(self) -> str:
        if not self._sharded():
            return FILE
        state = processes()
        return f"ema-{state.process_index + 1:05d}-of-{state.num_processes:05d}.safetensors"
