"""One training step of any diffusers video pipeline, with no knowledge of any family.

Three facts make that possible:

- a training forward *is* the pipeline's own `__call__`, for one timestep, stopped at `scheduler.step` (`call.py`,
  `doors.py`; what a row of the dataset gives it: `conditioning.py`);
- the scheduler defines how a clip is noised and what the denoiser must predict (`schedule.py`);
- decoding tells how to encode (`latent_map.py`).

`learn.py` asks a pipeline for what it needs of them, and refuses, by name of the reason, where one does not hold;
`companions.py` knows what is denoised beside the clip. `step.py` takes the step: `PipelineStep`.
"""

from __future__ import annotations

from hf_motive.pipelines.conditioning import first_frame, video_frames
from hf_motive.pipelines.error import PipelineError
from hf_motive.pipelines.schedule import ScheduledTimestep
from hf_motive.pipelines.step import PipelineStep, StepOutput

__all__ = ["PipelineError", "PipelineStep", "ScheduledTimestep", "StepOutput", "first_frame", "video_frames"]
