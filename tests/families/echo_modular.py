"""Echo: LTX-2's denoiser and parts, distilled to a few noise levels, without a scheduler.

Its loop is its own: it predicts the clip, noises it anew at the next of a list of sigmas, and never calls a scheduler,
so that nothing tells what the denoiser's output means.
"""

from __future__ import annotations

import torch
from diffusers import EchoModularPipeline

from tests.families import ltx2
from tests.families.common import Variant, finish
from tests.families.ltx2_more import SHAPE

PARTS = ("tokenizer", "text_encoder", "connectors", "vae", "audio_vae", "transformer", "vocoder")


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> EchoModularPipeline:
    parts = ltx2.parts(seed)
    pipe = EchoModularPipeline()
    pipe.update_components(**{name: parts[name] for name in PARTS})
    return finish(pipe, dtype)


VARIANTS = (
    Variant(
        "echo-modular",
        "EchoModularPipeline",
        build,
        None,
        *SHAPE,
        None,
        call_kwargs=ltx2.CALL_KWARGS,
        refused="scheduler",
        remark="It has no scheduler: its distilled loop noises predicted clips anew at a few fixed levels.",
    ),
)
