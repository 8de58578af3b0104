"""An encoding as bytes: one safetensors, in which nothing is pickled."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from .errors import ClipError


class Encoding(NamedTuple):
    """One clip and its caption, as the frozen parts of a pipeline see them.

    Attributes:
        latents: (C, T, h, w) float32, of `PipelineStep.encode`.
        answers: Of `PipelineStep.answers` for the row's caption.
        weight: (T, h, w) float32 in [0, 1], the motion mask; None where there is none.
        mean_motion: Pixels a frame; None where it is not known.
        digest: `ClipEncoder.digest` of what encoded it.
        mask_digest: `ClipEncoder.mask_digest` of it, "" where no mask was asked for.
        mask_status: "" where the mask is there, else the status with which the clip was refused one (`static`).
        mask_reason: Why.
        settings: All that `digest` stands for.
    """

    latents: Tensor
    answers: dict[str, Any]
    weight: Tensor | None
    mean_motion: float | None
    digest: str
    mask_digest: str
    mask_status: str
    mask_reason: str
    settings: dict[str, Any]

    def mask(self) -> tuple[Tensor, float]:
        """The weight, and the mean motion, NaN where it is not known.

        Raises:
            ClipError: There is none; `mask_status` and `mask_reason` say why.
            ValueError: None was asked for.
        """
        if self.mask_status:
            raise ClipError(self.mask_status, self.mask_reason)
        if self.weight is None:
            raise ValueError("the clip was encoded without a motion mask: encode it anew, with a `weigh`")
        return self.weight, math.nan if self.mean_motion is None else self.mean_motion


def write_encoding(encoding: Encoding) -> bytes:
    """The same bytes for the same values."""
    from safetensors.torch import save

    from .pipelines.recall import dump

    said, structure = dump(encoding.answers)
    tensors = {"latents": encoding.latents, **{f"answers/{name}": tensor for name, tensor in said.items()}}
    if encoding.weight is not None:
        tensors["weight"] = encoding.weight
    # Copies: tensors that share memory are refused.
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    facts = {name: value for name, value in encoding._asdict().items() if name not in ("latents", "answers", "weight")}
    # One entry, because several have no order there.
    return save(plain, {"encoding": json.dumps({**facts, "answers": structure}, sort_keys=True)})


def read_encoding(blob: bytes) -> Encoding:
    """What is in a row's `encoded`. Tensors are on the CPU.

    Raises:
        ValueError: The bytes are no encoding.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    from .pipelines.recall import load as load_answers

    try:
        header = json.loads(bytes(blob[8 : 8 + int.from_bytes(blob[:8], "little")]))
        facts: Mapping[str, Any] = json.loads(header["__metadata__"]["encoding"])
        tensors = load(bytes(blob))
        said = {name.partition("/")[2]: tensor for name, tensor in tensors.items() if name.startswith("answers/")}
        return Encoding(
            **{
                **facts,
                "latents": tensors["latents"],
                "weight": tensors.get("weight"),
                "answers": load_answers(said, facts["answers"]),
            }
        )
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"not an encoding, or a damaged one ({error}): encode the clips anew") from error
