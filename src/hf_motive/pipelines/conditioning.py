"""How a clip, its caption and the rest of its row become the arguments of a pipeline's call."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_motive.pipelines.call import call_parameters
from hf_motive.pipelines.error import PipelineError
from hf_motive.pipelines.schedule import schedule_steps

if TYPE_CHECKING:
    from PIL.Image import Image

#: The argument that takes the number of frames, by the names that pipelines give it.
FRAME_ARGUMENTS = ("num_frames", "frames", "video_length", "segment_frame_length")

#: What a step asks of every call whose signature has an argument of such a name. Guidance is off: training has none.
CALL_ARGUMENTS = (
    (r"(\w+_)?guidance_scale|true_cfg_scale|(\w+_)?modality_scale", 1.0),
    (r"pag_scale|(\w+_)?stg_scale|(\w+_)?guidance_rescale", 0.0),
    (r"strength", 1.0),  # start from the injected latents, not from a later timestep
    (r"decode_noise_scale", 0.0),  # no noise between the latents and vae.decode
    (r"use_resolution_binning", False),  # generate at the size that is asked for
)


def video_frames(pixels: Tensor) -> list[Image]:
    """(F, 3, H, W) in [-1, 1] as 8-bit PIL images: what every pipeline takes as a `video`."""
    from PIL import Image

    frames = ((pixels.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()) for frame in frames]


def first_frame(pixels: Tensor) -> Image:
    """The first frame of (F, 3, H, W) in [-1, 1] as an 8-bit PIL image: what every pipeline takes as `image`."""
    return video_frames(pixels[:1])[0]


#: Arguments that the clip itself can give, untold, to a call that cannot do without them.
FROM_THE_CLIP: dict[str, Callable[[Tensor], Any]] = {"image": first_frame, "video": video_frames}


class Conditioning:
    """The arguments of a pipeline's call for one example.

    Args:
        pipeline: Any diffusers pipeline.
        num_frames, height, width: Of every clip.
        given: The user's `example -> arguments`, or None.
        call_kwargs: The user's arguments for every clip. They win over everything else.

    Raises:
        PipelineError: The call requires arguments that nobody gives.
    """

    from_the_clip: tuple[str, ...]  # names of the arguments that the clip gives untold
    described: dict[str, str]  # argument -> "the clip" or "told", by the last example

    def __init__(
        self,
        pipeline: Any,
        num_frames: int,
        height: int,
        width: int,
        given: Callable[[Mapping[str, Any]], dict[str, Any]] | None,
        call_kwargs: Mapping[str, Any],
    ):
        self.pipeline = pipeline
        self.num_frames, self.height, self.width = num_frames, height, width
        self.given, self.call_kwargs = given, dict(call_kwargs)
        self._takes = call_parameters(pipeline)
        wanted = {
            **dict.fromkeys(FRAME_ARGUMENTS, num_frames),
            "height": height,
            "width": width,
            "decode_chunk_size": num_frames,  # all frames in one call of vae.decode
            "num_inference_steps": schedule_steps(pipeline.scheduler),
            **{name: value for name in self._takes for names, value in CALL_ARGUMENTS if re.fullmatch(names, name)},
        }
        if "true_cfg_scale" in self._takes:
            wanted.pop("guidance_scale", None)  # then guidance is an input of the denoiser, and stays
        self._fixed = {name: value for name, value in wanted.items() if name in self._takes}
        self.from_the_clip = ()

    def candidates(self, example: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
        """What the clip could give: what the call requires; and then, for calls that fail without, one thing more.

        Many signatures say `image=None` where the call cannot do without an image, so the caller tries.
        """
        told = {*self._told(example), *self.call_kwargs, "prompt"}
        open_ = {name: parameter for name, parameter in self._takes.items() if name not in told}
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        required = [n for n, p in open_.items() if p.default is inspect.Parameter.empty and p.kind in named]
        required = [name for name in required if name not in self._fixed]
        told_of_video = any("video" in name and name in self._takes for name in told)
        if not {*FRAME_ARGUMENTS} & self._takes.keys() and not told_of_video and "video" not in required:
            if "video" not in open_:
                raise PipelineError(
                    self.pipeline,
                    f"its call has no argument for the number of frames ({', '.join(FRAME_ARGUMENTS)}), and is given "
                    "no video.",
                )
            required.append("video")
        unknown = [name for name in required if name not in FROM_THE_CLIP]
        if unknown:
            entries = ", ".join(f"{name!r}: example[{name!r}]" for name in unknown)
            raise PipelineError(
                self.pipeline,
                f"its call requires {', '.join(unknown)}, which a clip and its caption do not give. Say how an "
                f"example does: conditioning=lambda example: {{{entries}}}.",
            )
        yield tuple(required)
        for name in FROM_THE_CLIP:
            if name in open_ and name not in required:
                yield (*required, name)

    def arguments(self, caption: str, example: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments of one call."""
        return self._with(dict(self._fixed), caption, example)

    def generation(self, caption: str, example: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments of an ordinary call, which generates: nothing of what training forces on it."""
        shape = dict.fromkeys(FRAME_ARGUMENTS, self.num_frames) | {"height": self.height, "width": self.width}
        shape["use_resolution_binning"] = False
        return self._with({k: v for k, v in shape.items() if k in self._takes}, caption, example)

    @property
    def reads_rows(self) -> bool:
        """Whether a call needs anything of its example."""
        return self.given is not None or bool(self.from_the_clip)

    def _with(self, arguments: dict[str, Any], caption: str, example: Mapping[str, Any]) -> dict[str, Any]:
        if "prompt" in self._takes:
            arguments["prompt"] = caption
        if self.from_the_clip and "pixels" not in example:
            raise PipelineError(
                self.pipeline,
                f"it is conditioned on {' and '.join(self.from_the_clip)}. Pass the clip, which gives it, in the "
                "example: example={'pixels': pixels, ...}; or say how: "
                f"PipelineStep(..., conditioning=lambda example: {{{self.from_the_clip[0]!r}: ...}}).",
            )
        for name in self.from_the_clip:
            arguments[name] = FROM_THE_CLIP[name](example["pixels"])
        told = self._told(example)
        self.described = dict.fromkeys(self.from_the_clip, "the clip") | dict.fromkeys(sorted(told), "told")
        arguments |= told
        arguments |= self.call_kwargs
        return arguments

    def _told(self, example: Mapping[str, Any]) -> dict[str, Any]:
        if self.given is None:
            return {}
        try:
            return dict(self.given(example))
        except KeyError as error:
            error.add_note(
                "while hf_motive asked conditioning(example) for arguments of the pipeline. At construction the "
                "example is a blank clip, {'pixels': ...}, unless one is passed: example=clips[0]."
            )
            raise
