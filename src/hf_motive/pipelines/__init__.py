"""One training step of any diffusers video pipeline, with no knowledge of any family.

Three facts make that possible, one file each:

- `call.py`: a training forward *is* the pipeline's own `__call__`, for one timestep, stopped at `scheduler.step`;
- `schedule.py`: the scheduler defines how a clip is noised and what the denoiser must predict;
- `latent_map.py`: decoding tells how to encode.

`step.py` puts them together as `PipelineStep`, and refuses, by name of the reason, where one of them does not hold.
"""

from __future__ import annotations

from hf_motive.pipelines.error import PipelineError
from hf_motive.pipelines.schedule import ScheduledTimestep
from hf_motive.pipelines.step import PipelineStep, StepOutput

__all__ = ["PipelineError", "PipelineStep", "ScheduledTimestep", "StepOutput"]
