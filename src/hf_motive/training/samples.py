"""Clips that a pipeline generates while it is trained: the same captions and seeds at every interval."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import BaseGuidance
from torch import Tensor

from ..pipelines import PipelineStep
from ..pipelines.call import call_parameters, seeded
from ..video import save_clip
from .generating import evaluating, frames, one_precision, unchanged

logger = logging.getLogger(__name__)

#: What lies beside the clips of a folder and says which is which.
LIST = "samples.json"

#: Which arguments set guidance, by the names that pipelines give them.
GUIDANCE = ("guidance_scale", "true_cfg_scale")


class Sample(NamedTuple):
    """One generated clip: `samples.json` is a list of these.

    Args:
        caption: What was asked for.
        seed: Of its noise.
        file: Name of the mp4, in the same folder.
    """

    caption: str
    seed: int
    file: str


class Sampler:
    """Generate clips with the pipeline of a step: its own ordinary call, of the clip's shape, and nothing left behind.

    The noise is drawn on the CPU from the seed. The weights are those of the moment; scheduler, guider, training mode
    and the state of the global random number generators are afterwards what they were, so that a training with samples
    is the training without. Where a denoiser was cast to float32 for training and the rest of the pipeline is in half
    precision, the call runs under autocast, as no pipeline converts everywhere.

    Args:
        step: Of the pipeline.
        steps: Denoising steps of a clip, at least 1.
        guidance: Scale of classifier-free guidance, by whichever argument or guider the pipeline has. None: as it is.
        fps: Of the files.
        seed: Of the first clip that `write` generates; each further one has the next.

    Raises:
        ValueError: `steps` is below 1, or there is nothing that sets the pipeline's guidance.
    """

    def __init__(
        self,
        step: PipelineStep,
        *,
        steps: int = 30,
        guidance: float | None = None,
        fps: float = 16.0,
        seed: int = 0,
    ):
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.step, self.steps, self.guidance, self.fps, self.seed = step, steps, guidance, fps, seed
        self._takes = call_parameters(step.pipeline)
        self._guided_by = next((name for name in GUIDANCE if name in self._takes), None)
        if guidance is not None and self._guided_by is None and not any(map(_has_scale, self._guiders().values())):
            raise ValueError(
                f"{type(step.pipeline).__name__} has no {' or '.join(GUIDANCE)}, neither as an argument nor on a "
                "guider: leave guidance at None, and say by call_kwargs what its call does take."
            )

    @torch.no_grad()
    def clip(self, caption: str, example: Mapping[str, Any] | None = None, seed: int = 0) -> Tensor:
        """Generate one clip.

        Args:
            caption: What is asked for; unused where the pipeline takes no prompt.
            example: The row that the clip is conditioned on, as for `PipelineStep.loss`.
            seed: Of everything that is drawn.

        Returns:
            (F, 3, H, W), float32 in [-1, 1], on the CPU; F, H and W are what the pipeline makes of those asked for.

        Raises:
            ValueError: What was generated is not finite, or no video.
        """
        pipeline = self.step.pipeline
        arguments = self.step.generation(caption, example)
        ours: dict[str, Any] = {
            "num_inference_steps": self.steps,
            "generator": torch.Generator("cpu").manual_seed(seed),
            "output_type": "pt",
            "return_dict": True,
        }
        if self.guidance is not None and self._guided_by:
            ours[self._guided_by] = self.guidance
        arguments |= {name: value for name, value in ours.items() if name in self._takes}
        with ExitStack() as stack:
            stack.enter_context(evaluating(pipeline))
            stack.enter_context(unchanged(pipeline))
            stack.enter_context(seeded(self.step.device, seed))
            stack.enter_context(one_precision(pipeline, self.step.denoisers, self.step.device))
            for name, guider in self._guiders().items():
                scaled = {"guidance_scale": self.guidance} if self.guidance is not None and _has_scale(guider) else {}
                vars(pipeline)[name] = guider.new(**scaled)
            return frames(pipeline(**arguments))

    def write(
        self,
        folder: str | Path | None,
        captions: Sequence[str],
        examples: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Path]:
        """Generate a clip for each caption, as `00-a-red-ball.mp4` and so on, and list them in `samples.json`.

        A clip that fails (out of memory, frames that are not finite) is logged and left out: it ends no training.

        Args:
            folder: Where to; it is made. None on processes that generate along, since the denoiser is sharded over
                all, and write nothing.
            captions: Clip i has the seed `seed + i`, whatever the others do.
            examples: The row of each caption.

        Returns:
            The files that were written.

        Raises:
            ValueError: There are not as many examples as captions.
        """
        if examples is not None and len(examples) != len(captions):
            raise ValueError(f"there must be one example a caption: {len(examples)} and {len(captions)} were given")
        if folder is not None:
            folder = Path(folder)
            folder.mkdir(parents=True, exist_ok=True)
        samples = []
        for i, caption in enumerate(captions):
            sample = Sample(caption, self.seed + i, _file_name(i, caption))
            try:
                clip = self.clip(caption, examples[i] if examples is not None else None, sample.seed)
                if folder is not None:
                    save_clip(folder / sample.file, clip, self.fps)
            except Exception as error:
                logger.warning("No sample of %r: %s: %s", caption, type(error).__name__, error)
                continue
            samples.append(sample)
        if folder is None:
            return []
        listed = [sample._asdict() for sample in samples]
        write_text(folder / LIST, json.dumps(listed, indent=2, ensure_ascii=False))
        return [folder / sample.file for sample in samples]

    def _guiders(self) -> dict[str, Any]:
        return {name: part for name, part in vars(self.step.pipeline).items() if isinstance(part, BaseGuidance)}


def _has_scale(guider: Any) -> bool:
    return "guidance_scale" in guider.config


def read_samples(folder: str | Path) -> list[Sample]:
    """What `Sampler.write` left in a folder.

    Raises:
        ValueError: The folder has no list of samples, or it is not one.
    """
    path = Path(folder) / LIST
    try:
        return [Sample(row["caption"], row["seed"], row["file"]) for row in json.loads(path.read_text("utf-8"))]
    except FileNotFoundError:
        raise ValueError(f"{folder} has no {LIST}: give a folder that Sampler.write has filled") from None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a list of samples ({error}): write the folder anew") from None


def _file_name(place: int, caption: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", caption.lower()).strip("-")[:40].rstrip("-")
    return f"{place:02d}-{words}.mp4" if words else f"{place:02d}.mp4"


def write_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)
